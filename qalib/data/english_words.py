"""Closed classes of English words, and verbs that are not regular: plain lists, no rules."""


def words(text: str) -> frozenset[str]:
    """The words of a list that is written as a text."""
    return frozenset(text.split())


WH = words("what which who whom whose when where why how")
BE = frozenset(["is", "are", "was", "were"])
DO = frozenset(["do", "does", "did"])
HAVE = frozenset(["has", "have", "had"])
MODALS = words("can could will would shall should may might must")
AUXILIARIES = BE | DO | HAVE | MODALS
PREPOSITIONS = words(
    """of in on at by for from with to into onto about against after before during since until under
    over between among through throughout within without near as per upon toward towards behind
    beyond across along around above below via outside inside off out up down than like alongside
    besides despite regarding according due"""
)
DETERMINERS = words(
    """the a an this that these those his her its their our your my some any each every no all both
    another other most many several few"""
)
PRONOUNS = words("he she it they we you i there one")
JOINING = words("and or but when while because if although though that which who where whose whom")
PREDICATES = words(  # adjectives that follow their noun: "When was it able to ..."
    """able available responsible famous different similar important active open dead alive equal
    common necessary present ready similar unable visible legal illegal such worth"""
)
SMALL = words("not also still usually often now never always only just currently")
FUNCTION_WORDS = (
    WH
    | AUXILIARIES
    | PREPOSITIONS
    | DETERMINERS
    | PRONOUNS
    | JOINING
    | SMALL
    | words("be been being am so too more less much very him them us me 's n't")
)

_FORMS = """
    arise/arose/arisen be/was/been bear/bore/born beat/beat/beaten become/became/become
    begin/began/begun bind/bound/bound bite/bit/bitten bleed/bled/bled blow/blew/blown
    break/broke/broken breed/bred/bred bring/brought/brought broadcast/broadcast/broadcast
    build/built/built burn/burned/burned buy/bought/bought cast/cast/cast catch/caught/caught
    choose/chose/chosen come/came/come cost/cost/cost cut/cut/cut deal/dealt/dealt dig/dug/dug
    do/did/done draw/drew/drawn drink/drank/drunk drive/drove/driven eat/ate/eaten
    fall/fell/fallen feed/fed/fed feel/felt/felt fight/fought/fought find/found/found
    flee/fled/fled fly/flew/flown forbid/forbade/forbidden forget/forgot/forgotten
    freeze/froze/frozen get/got/gotten give/gave/given go/went/gone grow/grew/grown hang/hung/hung
    have/had/had hear/heard/heard hide/hid/hidden hit/hit/hit hold/held/held hurt/hurt/hurt
    keep/kept/kept know/knew/known lay/laid/laid lead/led/led leave/left/left lend/lent/lent
    let/let/let lie/lay/lain lose/lost/lost make/made/made mean/meant/meant meet/met/met
    mistake/mistook/mistaken overcome/overcame/overcome overthrow/overthrew/overthrown
    pay/paid/paid put/put/put read/read/read ride/rode/ridden ring/rang/rung rise/rose/risen
    run/ran/run say/said/said see/saw/seen seek/sought/sought sell/sold/sold send/sent/sent
    set/set/set shake/shook/shaken shoot/shot/shot show/showed/shown shut/shut/shut sing/sang/sung
    sink/sank/sunk sit/sat/sat sleep/slept/slept speak/spoke/spoken spend/spent/spent
    split/split/split spread/spread/spread stand/stood/stood steal/stole/stolen stick/stuck/stuck
    strike/struck/struck swear/swore/sworn swim/swam/swum take/took/taken teach/taught/taught
    tear/tore/torn tell/told/told think/thought/thought throw/threw/thrown
    undergo/underwent/undergone understand/understood/understood undertake/undertook/undertaken
    wake/woke/woken wear/wore/worn win/won/won withdraw/withdrew/withdrawn write/wrote/written
"""
IRREGULAR = {  # base to (past, participle)
    base: (past, participle)
    for base, past, participle in (row.split("/") for row in _FORMS.split())
}
PASTS = {past: base for base, (past, _) in IRREGULAR.items() if base != "be"}
PARTICIPLES = frozenset(participle for _, participle in IRREGULAR.values()) | {"got"}
NOT_PARTICIPLES = words(
    """need seed feed weed deed reed shed sled speed indeed hundred sacred breed bleed exceed
    proceed embed succeed"""
)
PLAIN_VERBS = words(  # common regular ones, for data too small to show them
    """
    accept achieve act add affect agree allow announce appear apply appoint argue arrive ask
    attack attempt attend believe belong call carry cause change claim complete consider consist
    contain continue contribute control cover create cross decide declare defeat define demand
    depend describe design destroy determine develop die differ discover divide earn employ enable
    encourage end enter establish exist expand experience explain express extend fail finish
    follow form found gain happen help hire host identify improve include increase influence
    introduce invade invent involve join kill last launch learn like live locate look lose love
    marry measure move name need occur offer open operate own pass perform place plan play prefer
    prevent produce prove provide publish reach receive refer reject release rely remain remove
    replace report represent require result retire return reveal rule score separate serve share
    sign spend start state stay stop study succeed suffer suggest support surrender survive talk
    travel treat try turn use value view visit vote want watch work"""
)

_PAIRS = """
    first/last largest/smallest biggest/smallest highest/lowest oldest/newest earliest/latest
    longest/shortest tallest/shortest best/worst most/least greatest/smallest more/fewer
    larger/smaller higher/lower older/younger greater/lesser longer/shorter better/worse
    large/small high/low old/new long/short early/late good/bad strong/weak rich/poor hot/cold
    public/private internal/external ancient/modern eastern/western northern/southern east/west
    north/south male/female men/women boys/girls man/woman king/queen husband/wife father/mother
    son/daughter brother/sister sons/daughters upper/lower inner/outer positive/negative
    increase/decrease win/lose won/lost before/after major/minor legal/illegal maximum/minimum
    rural/urban domestic/foreign military/civilian increased/decreased primary/secondary
    offensive/defensive victory/defeat summer/winter spring/autumn morning/evening
    day/night heavy/light deep/shallow wide/narrow front/back
"""
OPPOSITES: dict[str, str] = {}  # of several partners the first counts
for _one, _other in (pair.split("/") for pair in _PAIRS.split()):
    OPPOSITES.setdefault(_one, _other)
    OPPOSITES.setdefault(_other, _one)
