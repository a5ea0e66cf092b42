"""What the almanac is made of: kinds of things, relations, phrasings and the stock of words.

Pure data, read by ``almanac.py``. A phrasing is a clause with slots and two marks:

- ``{S}`` the subject in any form (name, description, pronoun), ``{O}`` the same as an object,
  ``{S's}`` its possessive, ``{N}`` a name or description but no pronoun, ``{V}`` the value;
- ``[in {V}]`` a longer answer that counts as right, too;
- ``|`` where a second subject may take over: "A was led |by X" can go on "and B by Y".

Clauses that begin with ``{S}`` and have no comma can become relative clauses, share their subject
with another clause or take an aside; the rest stand alone. Phrasings under ``says_test`` and
``asks_test`` are used by the test split and by no other.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """A kind of fact: its answer type, its value stock, and how it is told and asked for."""

    key: str
    type: str
    says: str
    says_test: str
    asks: str
    asks_test: str
    stock: tuple = ()  # what values are drawn from; its meaning depends on the type
    late: bool = False  # a year that comes after the subject's other years


@dataclass(frozen=True)
class Kind:
    """A kind of subject: how its members are named and spoken of, and what is told of them.

    ``names`` are patterns around an invented word X, the full form first; ``stem`` says which
    word stock X comes from; ``twins`` are pairs of words that make two names out of one X.
    """

    plural: str
    stem: str
    names: tuple[str, ...]
    described: tuple[str, ...]
    relations: tuple[str, ...]
    twins: tuple[tuple[str, str], ...] = ()


def _parts(text: str) -> tuple[str, ...]:
    """What stands between commas, white space squeezed."""
    return tuple(" ".join(part.split()) for part in text.split(","))


_LIFE = _parts("born, birthplace, settled, teacher, rival, trade, work, member, left")

KINDS = (
    Kind(
        "expeditions",
        "place",
        ("the X Expedition", "the X party"),
        ("the expedition", "the venture"),
        _parts("leader, surveyor, departed, start, destination, patron, crew, retreat"),
        (("First", "Second"), ("Northern", "Southern")),
    ),
    Kind(
        "ships",
        "ship",
        ("the sailing ship X", "the X"),
        ("the ship", "the vessel"),
        _parts("captain, designer, launched, lost, port, builder, crew, length, material, sinking"),
    ),
    Kind(
        "observatories",
        "family",
        ("the X Observatory",),
        ("the observatory", "the institute"),
        _parts("designer, director, opened, closed, site, patron, staff, altitude, closure"),
        (("Upper", "Lower"), ("Old", "New")),
    ),
    Kind(
        "festivals",
        "place",
        ("the X Festival",),
        ("the festival", "the celebration"),
        _parts("founder, director, founded, venue, home, visitors, day, occasion"),
        (("Spring", "Autumn"), ("Greater", "Lesser")),
    ),
    Kind(
        "companies",
        "family",
        ("the X Company", "X"),
        ("the company", "the firm"),
        _parts("founder, director, founded, closed, seat, home, staff, product, closure"),
        (("Northern", "Southern"), ("Old", "New")),
    ),
    Kind(
        "museums",
        "family",
        ("the X Museum",),
        ("the museum", "the collection"),
        _parts("founder, designer, director, opened, closed, site, home, patron, staff, closure"),
        (("Old", "New"),),
    ),
    Kind(
        "bridges",
        "place",
        ("the X Bridge",),
        ("the bridge", "the crossing"),
        _parts("designer, opened, site, patron, builder, length, material"),
        (("Old", "New"), ("Upper", "Lower")),
    ),
    Kind(
        "musical instruments",
        "instrument",
        ("the X",),
        ("the instrument", "the new instrument"),
        _parts("inventor, performer, invented, workshop, strings, material, piece"),
        (("bass", "treble"), ("concert", "travelling")),
    ),
    Kind("botanists", "person", (), ("the botanist", "the naturalist"), _LIFE),
    Kind("painters", "person", (), ("the painter", "the artist"), _LIFE),
    Kind("astronomers", "person", (), ("the astronomer", "the scholar"), _LIFE),
    Kind("composers", "person", (), ("the composer", "the musician"), _LIFE),
)

# Reasons: (subjects, predicates); every subject goes with every predicate of its pair.
_ROADS = (
    _parts(
        """
        the northern pass, the last stretch of road, the way across the marsh, the passage
        through the ice, the river at the frontier, the trail along the cliffs, the frozen
        channel, the only known ford, the path over the glacier, the track through the gorge,
        the rope bridge below the camp, the valley behind the ridge, the old salt road
        """
    ),
    _parts(
        """
        had become too dangerous, could no longer be crossed, was blocked by fresh snow, had
        been swept away in the night, was watched by armed riders, had vanished under mud,
        proved far longer than the maps had shown, was closed by order of the governor, had
        claimed most of the pack animals, had flooded after a week of rain, turned out to lead
        nowhere, was held by rebels
        """
    ),
)
_LEAKS = (
    _parts(
        """
        the main pump, the rudder, the seam below the waterline, the cargo hatch, the forward
        mast, the anchor chain, the steering gear, the plank beside the keel, the ballast in the
        hold, the signal lamp, the caulking at the stern, the bilge valve
        """
    ),
    _parts(
        """
        had worked loose in heavy seas, gave way during a storm, had not been repaired in time,
        failed near the reef, had been damaged in a collision, failed off Cape Sorrow, had been
        neglected for years, was struck by lightning, had frozen solid, could not be reached in
        the dark, had been fitted the wrong way round, was crushed by drifting ice
        """
    ),
)
_MONEY = (
    _parts(
        """
        the yearly grant, the income from the mill, the family fortune, the reserve fund, the
        loan from the bank, the city subsidy, the money from ticket sales, the trade with the
        islands, the rent from the harbour land, the promised legacy, the pension from the
        duchess, the export premium
        """
    ),
    _parts(
        """
        had dried up, could no longer cover the costs, had been spent on lawsuits, was lost in a
        bank failure, had been stolen by a clerk, was cut off without warning, had gone to a
        rival, came to an end after the war, had shrunk to almost nothing, was seized by the
        crown, had been wagered and lost, was needed to rebuild the town
        """
    ),
)
_QUARRELS = (
    _parts(
        """
        the old guild, the town council, the village school, the local bishop, the landlord, the
        city academy, the district judge, the garrison commander, the harbour board, the family
        firm, the parish priest, the regional governor
        """
    ),
    _parts(
        """
        had banned all experiments, refused to pay for new work, had burned a set of notebooks,
        would not allow lessons at night, had doubled the tax on paper, had raised the rent,
        demanded an oath of loyalty, had broken a promise of support, had closed the library,
        wanted to send every young person to the mines, had ruled against newcomers, objected to
        work on holidays
        """
    ),
)
_PERILS = (
    _parts(
        """
        the great flood, the long drought, the fire in the granary, the plague of locusts, the
        siege of the upper town, the winter famine, the cattle fever, the earthquake, the
        dispute over the wells, the landslide above the mill, the war with the coast, the year
        of the hailstorms
        """
    ),
    _parts(
        """
        had spared the old quarter, had ended without a single death, was over at last, had left
        the church unharmed, had brought two hostile villages together, had been foretold by a
        shepherd, had made the town poor but proud, had carried off the former mayor, had been
        met with great courage, had ruined every barn, had come to a sudden end, was not to be
        forgotten
        """
    ),
)

RELATIONS = (
    # ---- people -------------------------------------------------------------------------------
    Relation(
        "leader",
        "person",
        says="""
        {S} was led |by {V}
        {S} set out |under {V}
        {S} had {V} at its head
        {V} took charge of {N}
        {V} was chosen to lead {N}
        command of {N} fell to {V}
        the leader of {N} was {V}
        """,
        says_test="""
        {S} travelled |under the command of {V}
        the person in charge of {N} was {V}
        {V} stood at the head of {N}
        """,
        asks="""
        Who led {N}?
        Who was in charge of {N}?
        Who was the leader of {N}?
        Under whom did {N} set out?
        Which person was at the head of {N}?
        To whom did command of {N} fall?
        """,
        asks_test="""
        Who held command of {N}?
        By whom was {N} led?
        What was the name of the person who took charge of {N}?
        """,
    ),
    Relation(
        "surveyor",
        "person",
        says="""
        {S} took {V} along to draw its maps
        {S} owed its maps |to {V}
        {V} mapped {S's} route
        {V} travelled with {S} as surveyor
        {V} made the charts for {N}
        the maps of {N} were drawn by {V}
        the surveyor of {N} was {V}
        """,
        says_test="""
        {S} relied |on {V} for its charts
        {V} joined {S} as a map-maker
        the route of {N} was charted by {V}
        """,
        asks="""
        Who drew the maps of {N}?
        Who mapped the route of {N}?
        Who was the surveyor of {N}?
        To whom did {N} owe its maps?
        Who made the charts for {N}?
        Which person travelled with {N} as surveyor?
        """,
        asks_test="""
        Who charted the route of {N}?
        On whom did {N} rely for its maps?
        Who was the map-maker of {N}?
        """,
    ),
    Relation(
        "captain",
        "person",
        says="""
        {S} sailed |under {V}
        {S} was commanded |by {V}
        {S} had {V} as its captain
        {V} was given command of {N}
        {V} took the helm of {N}
        the captain of {N} was {V}
        the crew of {N} obeyed the orders of {V}
        """,
        says_test="""
        {S} put to sea |under the command of {V}
        {V} served as master of {N}
        the helm of {N} was in the hands of {V}
        """,
        asks="""
        Who was the captain of {N}?
        Who commanded {N}?
        Under whom did {N} sail?
        Who was given command of {N}?
        Whose orders did the crew of {N} obey?
        Which captain took the helm of {N}?
        """,
        asks_test="""
        Who was in command of {N}?
        Who served as captain aboard {N}?
        In whose hands was the helm of {N}?
        """,
    ),
    Relation(
        "designer",
        "person",
        says="""
        {S} was designed |by {V}
        {S} followed a design |by {V}
        {S} owed its shape |to {V}
        {V} drew up the plans for {N}
        {V} designed {S}
        the plans of {N} came from {V}
        the designer of {N} was {V}
        """,
        says_test="""
        {S} was built |to the plans of {V}
        {V} produced the drawings for {N}
        the design of {N} was the work of {V}
        """,
        asks="""
        Who designed {N}?
        Who drew up the plans for {N}?
        Who was the designer of {N}?
        Whose design did {N} follow?
        From whom did the plans of {N} come?
        To whom did {N} owe its shape?
        """,
        asks_test="""
        Who was responsible for the design of {N}?
        To whose plans was {N} built?
        Who produced the drawings for {N}?
        """,
    ),
    Relation(
        "founder",
        "person",
        says="""
        {S} was founded |by {V}
        {S} was the creation |of {V}
        {S} owed its existence |to {V}
        {S} began as an idea |of {V}
        {V} founded {S}
        {V} brought {S} into being
        the founder of {N} was {V}
        """,
        says_test="""
        {S} was set up |by {V}
        {S} had {V} as its founder
        {V} created {S}
        """,
        asks="""
        Who founded {N}?
        Who was the founder of {N}?
        Whose idea was {N}?
        Who brought {N} into being?
        To whom did {N} owe its existence?
        Who created {N}?
        """,
        asks_test="""
        Who set up {N}?
        By whom was {N} founded?
        Whose creation was {N}?
        """,
    ),
    Relation(
        "director",
        "person",
        says="""
        {S} was first directed |by {V}
        {S} had {V} as its first director
        {S} chose {V} as its first director
        {V} became the first director of {N}
        {V} ran {S} in its early days
        the daily running of {N} was left to {V}
        the first director of {N} was {V}
        """,
        says_test="""
        {S} was managed at the beginning |by {V}
        {V} was appointed to run {N}
        the post of first director of {N} went to {V}
        """,
        asks="""
        Who was the first director of {N}?
        Who ran {N} in its early days?
        Who first directed {N}?
        Whom did {N} choose as its first director?
        To whom was the daily running of {N} left?
        Which person became the first director of {N}?
        """,
        asks_test="""
        Who managed {N} at the beginning?
        Who was appointed to run {N}?
        To whom did the post of first director of {N} go?
        """,
    ),
    Relation(
        "inventor",
        "person",
        says="""
        {S} was invented |by {V}
        {S} was devised |by {V}
        {S} was first imagined |by {V}
        {S} sprang |from the mind of {V}
        {V} invented {S}
        {V} had the idea for {N}
        the inventor of {N} was {V}
        """,
        says_test="""
        {S} was an invention |of {V}
        {V} came up with {N}
        the idea for {N} was that of {V}
        """,
        asks="""
        Who invented {N}?
        Who devised {N}?
        Who was the inventor of {N}?
        Who had the idea for {N}?
        From whose mind did {N} spring?
        Who first imagined {N}?
        """,
        asks_test="""
        Who came up with {N}?
        Whose invention was {N}?
        By whom was {N} devised?
        """,
    ),
    Relation(
        "performer",
        "person",
        says="""
        {S} was first played in public |by {V}
        {S} was first heard |in the hands of {V}
        {S} made its public debut |with {V}
        {V} was the first to play {S} before an audience
        {V} gave the first concert on {N}
        the first public performance on {N} was given by {V}
        the first player of {N} was {V}
        """,
        says_test="""
        {S} was introduced to audiences |by {V}
        {V} played {S} at its first concert
        the first musician to perform on {N} was {V}
        """,
        asks="""
        Who first played {N} in public?
        Who gave the first concert on {N}?
        Who was the first player of {N}?
        Who was the first to play {N} before an audience?
        In whose hands was {N} first heard?
        With whom did {N} make its public debut?
        """,
        asks_test="""
        Which musician introduced {N} to the public?
        Who played {N} at its first concert?
        Who was the first person to perform on {N}?
        """,
    ),
    Relation(
        "teacher",
        "person",
        says="""
        {S} was taught |by {V}
        {S} studied |under {V}
        {S} learned everything |from {V}
        {V} gave {O} lessons
        {V} took {O} on as a pupil
        the teacher of {N} was {V}
        {S's} teacher was {V}
        """,
        says_test="""
        {S} was a pupil |of {V}
        {S} was trained |by {V}
        {V} accepted {O} as a student
        """,
        asks="""
        Who taught {N}?
        Under whom did {N} study?
        From whom did {N} learn everything?
        Who was the teacher of {N}?
        Who took {N} on as a pupil?
        Which person gave {N} lessons?
        """,
        asks_test="""
        Whose pupil was {N}?
        By whom was {N} trained?
        Who accepted {N} as a student?
        """,
    ),
    Relation(
        "rival",
        "person",
        says="""
        {S} quarrelled for years |with {V}
        {S} had a bitter rival |in {V}
        {S} was at odds |with {V}
        {V} was the rival of {N}
        {V} opposed {O} at every turn
        the great adversary of {N} was {V}
        {S's} fiercest opponent was {V}
        """,
        says_test="""
        {S} never made peace |with {V}
        {V} remained the lifelong opponent of {N}
        a long feud divided {N} from {V}
        """,
        asks="""
        With whom did {N} quarrel for years?
        Who was the great rival of {N}?
        With whom was {N} at odds?
        Who opposed {N} at every turn?
        Who was the fiercest opponent of {N}?
        Who was the adversary of {N}?
        """,
        asks_test="""
        With whom did {N} never make peace?
        Who remained a lifelong opponent of {N}?
        From whom was {N} divided by a long feud?
        """,
    ),
    # ---- years and days -----------------------------------------------------------------------
    Relation(
        "departed",
        "year",
        says="""
        {S} set out |[in {V}]
        {S} left home |[in {V}]
        {S} began its journey |[in {V}]
        [in {V}], {S} departed
        the year {V} saw the departure of {N}
        the start of {N} came [in {V}]
        it was [in {V}] that {N} got under way
        """,
        says_test="""
        {S} took to the road |[in {V}]
        {S's} journey started [in {V}]
        the departure of {N} took place [in {V}]
        """,
        asks="""
        When did {N} set out?
        In what year did {N} leave home?
        In which year did {N} depart?
        When did {N} begin its journey?
        In what year did {N} get under way?
        What was the year of the departure of {N}?
        """,
        asks_test="""
        When did {N} start?
        In which year did the journey of {N} begin?
        In what year did {N} take to the road?
        """,
    ),
    Relation(
        "launched",
        "year",
        says="""
        {S} was launched |[in {V}]
        {S} first touched water |[in {V}]
        {S} left the slipway |[in {V}]
        [in {V}], {S} was given to the sea
        the year {V} saw the launch of {N}
        the launch of {N} took place [in {V}]
        it was [in {V}] that {N} slid into the water
        """,
        says_test="""
        {S} took to the water |[in {V}]
        {S's} launch was celebrated [in {V}]
        the slipway released {S} [in {V}]
        """,
        asks="""
        When was {N} launched?
        In what year was {N} launched?
        In which year did {N} leave the slipway?
        When did {N} first touch water?
        What was the year of the launch of {N}?
        In what year did {N} slide into the water?
        """,
        asks_test="""
        When did {N} take to the water?
        In which year did the launch of {N} take place?
        In what year was {N} released from the slipway?
        """,
    ),
    Relation(
        "lost",
        "year",
        says="""
        {S} was lost |[in {V}]
        {S} sank |[in {V}]
        {S} went down |[in {V}]
        {S} made its last voyage |[in {V}]
        [in {V}], {S} was wrecked
        the loss of {N} came [in {V}]
        it was [in {V}] that {N} disappeared beneath the waves
        """,
        says_test="""
        {S} met its end |[in {V}]
        {S's} last voyage ended in disaster [in {V}]
        the sea took {S} [in {V}]
        """,
        asks="""
        When was {N} lost?
        In what year did {N} sink?
        In which year did {N} go down?
        When was {N} wrecked?
        When did {N} make its last voyage?
        What was the year of the loss of {N}?
        """,
        asks_test="""
        When did {N} meet its end?
        In which year was {N} taken by the sea?
        In what year did the last voyage of {N} end in disaster?
        """,
        late=True,
    ),
    Relation(
        "opened",
        "year",
        says="""
        {S} was opened |[in {V}]
        {S} was inaugurated |[in {V}]
        {S} came into use |[in {V}]
        [in {V}], {S} opened to the public
        the year {V} saw the opening of {N}
        the opening of {N} took place [in {V}]
        it was [in {V}] that {N} went into service
        """,
        says_test="""
        {S} was first used |[in {V}]
        {S's} inauguration was held [in {V}]
        the public was first admitted to {N} [in {V}]
        """,
        asks="""
        When was {N} opened?
        In what year was {N} inaugurated?
        In which year did {N} come into use?
        When did {N} go into service?
        When did {N} open to the public?
        What was the year of the opening of {N}?
        """,
        asks_test="""
        When was {N} first used?
        In which year was the inauguration of {N} held?
        In what year was the public first admitted to {N}?
        """,
    ),
    Relation(
        "founded",
        "year",
        says="""
        {S} was founded |[in {V}]
        {S} was established |[in {V}]
        {S} came into being |[in {V}]
        {S} dated |[from {V}]
        [in {V}], {S} was brought to life
        the founding of {N} took place [in {V}]
        it was [in {V}] that {N} began
        """,
        says_test="""
        {S} was set up |[in {V}]
        {S's} beginnings lay [in {V}]
        the year {V} marked the birth of {N}
        """,
        asks="""
        When was {N} founded?
        In what year was {N} established?
        In which year did {N} come into being?
        From what year did {N} date?
        When did {N} begin?
        What was the year of the founding of {N}?
        """,
        asks_test="""
        When was {N} set up?
        In which year did the beginnings of {N} lie?
        In what year was {N} brought to life?
        """,
    ),
    Relation(
        "closed",
        "year",
        says="""
        {S} closed its doors |[in {V}]
        {S} was shut down |[in {V}]
        {S} ceased to exist |[in {V}]
        {S} was given up |[in {V}]
        [in {V}], {S} was dissolved
        the end of {N} came [in {V}]
        it was [in {V}] that {N} came to an end
        """,
        says_test="""
        {S} was wound up |[in {V}]
        {S's} doors were closed for good [in {V}]
        the year {V} marked the end of {N}
        """,
        asks="""
        When did {N} close its doors?
        In what year was {N} shut down?
        In which year did {N} cease to exist?
        When was {N} given up?
        When was {N} dissolved?
        What was the year in which {N} came to an end?
        """,
        asks_test="""
        When was {N} wound up?
        In which year were the doors of {N} closed for good?
        What year marked the end of {N}?
        """,
        late=True,
    ),
    Relation(
        "invented",
        "year",
        says="""
        {S} was invented |[in {V}]
        {S} was first built |[in {V}]
        {S} appeared |[in {V}]
        {S} dated |[from {V}]
        [in {V}], {S} left the workshop for the first time
        the invention of {N} took place [in {V}]
        it was [in {V}] that {N} came into the world
        """,
        says_test="""
        {S} was devised |[in {V}]
        {S's} invention was announced [in {V}]
        the year {V} marked the birth of {N}
        """,
        asks="""
        When was {N} invented?
        In what year was {N} first built?
        In which year did {N} appear?
        From what year did {N} date?
        When did {N} come into the world?
        What was the year of the invention of {N}?
        """,
        asks_test="""
        When was {N} devised?
        In which year was the invention of {N} announced?
        In what year did {N} leave the workshop for the first time?
        """,
    ),
    Relation(
        "born",
        "year",
        says="""
        {S} was born |[in {V}]
        {S} came into the world |[in {V}]
        {S} first saw the light of day |[in {V}]
        [in {V}], {S} was born
        the birth of {N} took place [in {V}]
        the parish book entered {S's} birth [in {V}]
        it was [in {V}] that {N} was born
        """,
        says_test="""
        {S's} birth fell |[in {V}]
        the year {V} saw the birth of {N}
        the life of {N} began [in {V}]
        """,
        asks="""
        When was {N} born?
        In what year was {N} born?
        In which year did {N} come into the world?
        When did {N} first see the light of day?
        What was the year of the birth of {N}?
        When did the birth of {N} take place?
        """,
        asks_test="""
        In which year did the life of {N} begin?
        What year saw the birth of {N}?
        In what year does the birth of {N} fall?
        """,
    ),
    Relation(
        "day",
        "day",
        says="""
        {S} was held each year |[on {V}]
        {S} always began |[on {V}]
        {S} was celebrated |[on {V}]
        [on {V}], {S} was opened with a procession
        {V} was the day of {N}
        the date of {N} was {V}
        the calendar placed {N} [on {V}]
        """,
        says_test="""
        {S} took place every year |[on {V}]
        the day kept free for {N} was {V}
        people gathered for {N} [on {V}]
        """,
        asks="""
        On what day was {N} held each year?
        On which day did {N} always begin?
        What was the date of {N}?
        When was {N} celebrated?
        On what day did the calendar place {N}?
        Which day of the year was the day of {N}?
        """,
        asks_test="""
        On which day did {N} take place every year?
        What day was kept free for {N}?
        On what date did people gather for {N}?
        """,
    ),
    # ---- places -------------------------------------------------------------------------------
    Relation(
        "start",
        "place",
        says="""
        {S} set out |from {V}
        {S} left |from {V}
        {S} began its journey |in {V}
        {S} started |from {V}
        [from {V}], {S} took its first steps
        the starting point of {N} was {V}
        {V} was the place of departure of {N}
        """,
        says_test="""
        {S} began its march |in {V}
        {S's} first camp lay at the gates of {V}
        the place that {N} departed from was {V}
        """,
        asks="""
        From where did {N} set out?
        From which place did {N} leave?
        Where did {N} begin its journey?
        Where did {N} start from?
        What was the starting point of {N}?
        What was the place of departure of {N}?
        """,
        asks_test="""
        Where did {N} begin its march?
        From which place did {N} depart?
        In which place did the journey of {N} start?
        """,
    ),
    Relation(
        "destination",
        "place",
        says="""
        {S} was bound |for {V}
        {S} headed |for {V}
        {S} was sent |to {V}
        {S} hoped to reach |{V}
        [to {V}], {S} was meant to find a road
        the goal of {N} was {V}
        the destination of {N} was {V}
        """,
        says_test="""
        {S} made its way |towards {V}
        {S} had {V} as its goal
        the place that {N} hoped to see was {V}
        """,
        asks="""
        For where was {N} bound?
        Where was {N} headed?
        To which place was {N} sent?
        Which place did {N} hope to reach?
        What was the goal of {N}?
        What was the destination of {N}?
        """,
        asks_test="""
        Towards which place did {N} make its way?
        Which place did {N} have as its goal?
        Where was {N} meant to arrive?
        """,
    ),
    Relation(
        "port",
        "place",
        says="""
        {S} had its home port |in {V}
        {S} was based |in {V}
        {S} sailed |out of {V}
        {S} was registered |in {V}
        {V} was the home port of {N}
        the harbour of {V} was home to {N}
        between voyages, {S} lay [in {V}]
        """,
        says_test="""
        {S} belonged to the fleet |of {V}
        {S} spent its winters |in {V}
        the home of {N} between voyages was {V}
        """,
        asks="""
        What was the home port of {N}?
        Where was {N} based?
        Out of which port did {N} sail?
        Where was {N} registered?
        Where did {N} lie between voyages?
        Which harbour was home to {N}?
        """,
        asks_test="""
        To the fleet of which port did {N} belong?
        Where did {N} spend its winters?
        What place was the home of {N} between voyages?
        """,
    ),
    Relation(
        "seat",
        "place",
        says="""
        {S} had its offices |in {V}
        {S} was based |in {V}
        {S} had its headquarters |in {V}
        {S} was run |from {V}
        {V} was the seat of {N}
        the headquarters of {N} were in {V}
        the head office of {N} stood in {V}
        """,
        says_test="""
        {S} had its main office |in {V}
        {S} had its seat |in {V}
        the directors of {N} met at its office in {V}
        """,
        asks="""
        Where did {N} have its offices?
        Where was {N} based?
        Where were the headquarters of {N}?
        From which place was {N} run?
        Which place was the seat of {N}?
        Where did the head office of {N} stand?
        """,
        asks_test="""
        Where did {N} have its main office?
        Where did {N} have its seat?
        In which place did the directors of {N} meet?
        """,
    ),
    Relation(
        "site",
        "place",
        says="""
        {S} stood |in {V}
        {S} was built |in {V}
        {S} was erected |in {V}
        {S} could be seen |in {V}
        {V} was the site of {N}
        the site of {N} lay in {V}
        {V} was chosen as the place for {N}
        """,
        says_test="""
        {S} was located |in {V}
        {S} was put up |in {V}
        the place picked for {N} was {V}
        """,
        asks="""
        Where did {N} stand?
        Where was {N} built?
        Where was {N} erected?
        Where could {N} be seen?
        What was the site of {N}?
        Which place was chosen for {N}?
        """,
        asks_test="""
        Where was {N} located?
        In which place was {N} put up?
        What place was picked for {N}?
        """,
    ),
    Relation(
        "venue",
        "place",
        says="""
        {S} was held |in {V}
        {S} took place |in {V}
        {S} filled the streets |of {V}
        {S} was at home |in {V}
        {V} was the scene of {N}
        the setting of {N} was {V}
        guests of {N} travelled to {V}
        """,
        says_test="""
        {S} drew its crowds |to {V}
        {S} was celebrated |in {V}
        the place that hosted {N} was {V}
        """,
        asks="""
        Where was {N} held?
        Where did {N} take place?
        The streets of which place were filled by {N}?
        Where was {N} at home?
        Which place was the scene of {N}?
        To which place did guests of {N} travel?
        """,
        asks_test="""
        To which place did {N} draw its crowds?
        In which place was {N} celebrated?
        Which place hosted {N}?
        """,
    ),
    Relation(
        "home",
        "place",
        says="""
        {S's} founder came from {V}
        {S's} founder hailed from {V}
        {S's} founder was a native of {V}
        the founder of {N} had roots in {V}
        {V} was the home town of the founder of {N}
        the person behind {N} came from {V}
        {S} was the dream of someone |from {V}
        """,
        says_test="""
        {S's} founder had left {V} to make a fortune
        {S} was the brainchild of a native |of {V}
        the person who had started {N} was from {V}
        """,
        asks="""
        Where did the founder of {N} come from?
        Where did the founder of {N} hail from?
        Of which place was the founder of {N} a native?
        Where did the founder of {N} have roots?
        What was the home town of the founder of {N}?
        Where did the person behind {N} come from?
        """,
        asks_test="""
        Which place was home to the founder of {N}?
        From which place did the person who started {N} come?
        From which town was the founder of {N}?
        """,
    ),
    Relation(
        "birthplace",
        "place",
        says="""
        {S} was born |in {V}
        {S} was a native |of {V}
        {S} came into the world |in {V}
        {S} first saw the light of day |in {V}
        {V} was the birthplace of {N}
        {S's} birth took place in {V}
        the cradle of {N} stood in {V}
        """,
        says_test="""
        {S} was a child |of {V}
        {S's} native town was {V}
        the place of birth of {N} was {V}
        """,
        asks="""
        Where was {N} born?
        Of which place was {N} a native?
        Where did {N} come into the world?
        Where did {N} first see the light of day?
        What was the birthplace of {N}?
        Where did the cradle of {N} stand?
        """,
        asks_test="""
        In which place was {N} born?
        What was the native town of {N}?
        What was the place of birth of {N}?
        """,
    ),
    Relation(
        "settled",
        "place",
        says="""
        {S} later settled |in {V}
        {S} moved |to {V} for good
        {S} spent old age |in {V}
        {S} later lived |in {V}
        {V} became the later home of {N}
        {S's} last home was in {V}
        in later life, {S} lived [in {V}]
        """,
        says_test="""
        {S} finally made a home |in {V}
        {S's} last years were spent in {V}
        the later house of {N} stood in {V}
        """,
        asks="""
        Where did {N} later settle?
        To which place did {N} move for good?
        Where did {N} spend old age?
        Which place became the later home of {N}?
        Where did {N} live in later life?
        Where was the last home of {N}?
        """,
        asks_test="""
        Where did {N} finally make a home?
        Where were the last years of {N} spent?
        In which place did the later house of {N} stand?
        """,
    ),
    Relation(
        "workshop",
        "place",
        says="""
        {S} was first built |in {V}
        {S} came |from a workshop in {V}
        {S} was built for the first time |in {V}
        {S} was developed |in {V}
        {V} was the home of {N}
        {V} gave the world {N}
        the workshop behind {N} was in {V}
        """,
        says_test="""
        {S} was first made |in {V}
        {S} originated |in {V}
        the place where {N} was developed was {V}
        """,
        asks="""
        Where was {N} first built?
        From a workshop in which place did {N} come?
        Where was {N} built for the first time?
        Where was {N} developed?
        Which place gave the world {N}?
        Where was the workshop behind {N}?
        """,
        asks_test="""
        Where was {N} first made?
        In which place did {N} originate?
        What place was the home of {N}?
        """,
    ),
    # ---- organisations ------------------------------------------------------------------------
    Relation(
        "patron",
        "organisation",
        says="""
        {S} was paid for |by {V}
        {S} was financed |by {V}
        {S} was supported |by {V}
        {V} bore the cost of {N}
        {V} provided the money for {N}
        the funds for {N} came from {V}
        {S} lived on the generosity |of {V}
        """,
        says_test="""
        {S} was funded |by {V}
        {V} met the expenses of {N}
        the bills of {N} were paid by {V}
        """,
        asks="""
        Who paid for {N}?
        Which body financed {N}?
        Who bore the cost of {N}?
        Who provided the money for {N}?
        Which body supported {N}?
        On whose generosity did {N} live?
        """,
        asks_test="""
        Who funded {N}?
        Who met the expenses of {N}?
        Which body paid the bills of {N}?
        """,
        stock=_parts("Society, Academy, Foundation, Institute, Association, Trust, League"),
    ),
    Relation(
        "builder",
        "organisation",
        says="""
        {S} was built |by {V}
        {S} was constructed |by {V}
        {S} came |from {V}
        {S} was put together |by {V}
        {V} built {S}
        {V} was hired to build {N}
        the order for {N} went to {V}
        """,
        says_test="""
        {S} was assembled |by {V}
        {V} carried out the construction of {N}
        the contract to build {N} was won by {V}
        """,
        asks="""
        Who built {N}?
        Which firm constructed {N}?
        Which firm was hired to build {N}?
        Who put {N} together?
        To whom did the order for {N} go?
        Which builders did {N} come from?
        """,
        asks_test="""
        Which firm assembled {N}?
        Who carried out the construction of {N}?
        Who won the contract to build {N}?
        """,
        stock=_parts("Ironworks, Workshop, Yard, Foundry, Engineering Company, Joinery, Union"),
    ),
    Relation(
        "member",
        "organisation",
        says="""
        {S} was a member |of {V}
        {S} was elected |to {V}
        {S} belonged |to {V}
        {S} was received |into {V}
        {V} elected {O} as a member
        {V} counted {O} among its members
        the body that {N} belonged to was {V}
        """,
        says_test="""
        {S} was admitted |to {V}
        {S} joined |{V}
        {V} gave {O} a seat among its members
        """,
        asks="""
        Of which body was {N} a member?
        To which body was {N} elected?
        To which body did {N} belong?
        Into which body was {N} received?
        Which body elected {N} as a member?
        Which body counted {N} among its members?
        """,
        asks_test="""
        To which body was {N} admitted?
        Which body did {N} join?
        Which body gave {N} a seat among its members?
        """,
        stock=_parts("Society, Academy, College, Institute, Circle, Guild, Lyceum"),
    ),
    # ---- counts and measures ------------------------------------------------------------------
    Relation(
        "crew",
        "count",
        says="""
        {S} carried |{V}
        {S} counted {V}
        {S} took {V} along
        {S} numbered {V} in all
        {V} took part in the journey of {N}
        {V} were on the payroll of {N}
        the muster roll of {N} listed {V}
        """,
        says_test="""
        {S} consisted |of {V}
        {V} signed on with {N}
        the company of {N} numbered {V}
        """,
        asks="""
        How many people did {N} carry?
        How many people did {N} take along?
        How many people took part in the journey of {N}?
        How many people were on the payroll of {N}?
        How many names did the muster roll of {N} list?
        How many people did {N} number in all?
        """,
        asks_test="""
        How many people signed on with {N}?
        How large was the company of {N}?
        What was the number of people in {N}?
        """,
        stock=(8, 260, ("people", "men and women", "hands", "volunteers")),
    ),
    Relation(
        "staff",
        "count",
        says="""
        {S} employed |{V}
        {S} had a staff |of {V}
        {S} gave work |to {V}
        {S} grew until it had {V}
        {V} earned their living at {N}
        {V} worked at {N}
        the wage book of {N} named {V}
        """,
        says_test="""
        {S} provided jobs |for {V}
        {V} were employed at {N}
        the staff of {N} numbered {V}
        """,
        asks="""
        How many people did {N} employ?
        How large was the staff of {N}?
        To how many people did {N} give work?
        How many people earned their living at {N}?
        How many people worked at {N}?
        How many people did the wage book of {N} name?
        """,
        asks_test="""
        For how many people did {N} provide jobs?
        How many people were employed at {N}?
        What was the number of workers at {N}?
        """,
        stock=(6, 900, ("people", "workers", "clerks and assistants", "employees")),
    ),
    Relation(
        "visitors",
        "count",
        says="""
        {S} drew |{V}
        {S} attracted |{V}
        {S} was attended |by {V}
        {S} was visited |by {V}
        {V} came to {N} in a good year
        {V} flocked to {N}
        the gatekeepers of {N} counted {V}
        """,
        says_test="""
        {S} brought together |{V}
        {V} took part in {N}
        the crowd at {N} numbered {V}
        """,
        asks="""
        How many people did {N} draw?
        How many people did {N} attract?
        How many people attended {N}?
        How many people came to {N} in a good year?
        How many people flocked to {N}?
        How many people did the gatekeepers of {N} count?
        """,
        asks_test="""
        How many people did {N} bring together?
        How large was the crowd at {N}?
        What was the number of people who took part in {N}?
        """,
        stock=(120, 9500, ("people", "visitors", "guests", "pilgrims")),
    ),
    Relation(
        "strings",
        "count",
        says="""
        {S} had |{V}
        {S} was fitted |with {V}
        {S} was strung |with {V}
        {S} needed {V} for its sound
        {V} gave {S} its sound
        {V} ran along the body of {N}
        a player of {N} had to tune {V}
        """,
        says_test="""
        {S} possessed |{V}
        {V} were stretched across {N}
        the sound of {N} came from {V}
        """,
        asks="""
        How many strings did {N} have?
        With how many strings was {N} fitted?
        With how many strings was {N} strung?
        How many strings ran along the body of {N}?
        How many strings did a player of {N} have to tune?
        How many strings gave {N} its sound?
        """,
        asks_test="""
        How many strings did {N} possess?
        How many strings were stretched across {N}?
        From how many strings did the sound of {N} come?
        """,
        stock=(5, 64, ("strings", "gut strings", "wire strings")),
    ),
    Relation(
        "length",
        "measure",
        says="""
        {S} was {V} long
        {S} measured {V} from end to end
        {S} had a length |of {V}
        {S} stretched |over {V}
        from end to end, {S} measured {V}
        the length of {N} was {V}
        the surveyors gave {S} a length of {V}
        """,
        says_test="""
        {S} extended |over {V}
        {S} reached a full {V} in length
        the distance from one end of {N} to the other was {V}
        """,
        asks="""
        How long was {N}?
        What was the length of {N}?
        How much did {N} measure from end to end?
        What length did {N} have?
        Over what distance did {N} stretch?
        What length did the surveyors give {N}?
        """,
        asks_test="""
        How far was it from one end of {N} to the other?
        Over what length did {N} extend?
        How many metres long was {N}?
        """,
        stock=(18, 240, "metres"),
    ),
    Relation(
        "altitude",
        "measure",
        says="""
        {S} stood {V} above the sea
        {S} lay |at a height of {V}
        {S} was perched |at {V}
        {S} was built |at an altitude of {V}
        at a height of {V}, {S} rose above the clouds
        the altitude of {N} was {V}
        the climb to {N} ended at {V}
        """,
        says_test="""
        {S} was situated {V} above sea level
        {S} looked down |from a height of {V}
        the height of {N} above the sea was {V}
        """,
        asks="""
        How high above the sea did {N} stand?
        At what height did {N} lie?
        At what altitude was {N} built?
        What was the altitude of {N}?
        At what height was {N} perched?
        At what height did the climb to {N} end?
        """,
        asks_test="""
        How far above sea level was {N} situated?
        From what height did {N} look down?
        What was the height of {N} above the sea?
        """,
        stock=(900, 4200, "metres"),
    ),
    # ---- materials, goods, trades, titles -----------------------------------------------------
    Relation(
        "material",
        "material",
        says="""
        {S} was made |of {V}
        {S} was built |of {V}
        {S} consisted mainly |of {V}
        {S} was put together |from {V}
        {V} was used for {N}
        {V} was the material of {N}
        the makers of {N} used {V}
        """,
        says_test="""
        {S} was fashioned |from {V}
        {V} was chosen as the material for {N}
        the body of {N} was of {V}
        """,
        asks="""
        What was {N} made of?
        Of what was {N} built?
        Of what did {N} mainly consist?
        From what was {N} put together?
        Which material was used for {N}?
        What material did the makers of {N} use?
        """,
        asks_test="""
        From what was {N} fashioned?
        What was chosen as the material for {N}?
        Of what material was the body of {N}?
        """,
    ),
    Relation(
        "product",
        "product",
        says="""
        {S} made |{V}
        {S} sold |{V}
        {S} dealt |in {V}
        {S} was known |for its {V}
        {V} were the speciality of {N}
        {V} made {S} famous
        the workshops of {N} turned out {V}
        """,
        says_test="""
        {S} produced |{V}
        {S} specialised |in {V}
        the goods that {N} sold were {V}
        """,
        asks="""
        What did {N} make?
        What did {N} sell?
        In what did {N} deal?
        For what was {N} known?
        What was the speciality of {N}?
        What did the workshops of {N} turn out?
        """,
        asks_test="""
        What did {N} produce?
        In what did {N} specialise?
        Which goods made {N} famous?
        """,
    ),
    Relation(
        "trade",
        "trade",
        says="""
        {S} first worked |as {V}
        {S} began |as {V}
        {S} had earlier earned a living |as {V}
        {S} made a living at first |as {V}
        {S} had been {V} before
        {S's} first job was that of {V}
        in early years, {S} was {V}
        """,
        says_test="""
        {S} started out |as {V}
        {S} used to be {V}
        {S's} earlier trade was that of {V}
        """,
        asks="""
        As what did {N} first work?
        What was the first job of {N}?
        As what had {N} earlier earned a living?
        As what did {N} make a living at first?
        What had {N} been before?
        What was {N} in early years?
        """,
        asks_test="""
        As what did {N} start out?
        What did {N} use to be?
        What was the earlier trade of {N}?
        """,
    ),
    Relation(
        "work",
        "title",
        says="""
        {S} was best known |for {V}
        {S} became famous |with {V}
        {S} was remembered |for {V}
        {S} won renown |with {V}
        {V} made {S's} name
        {V} was the masterpiece of {N}
        the best-known work of {N} was {V}
        """,
        says_test="""
        {S} owed all fame |to {V}
        {V} was what {S} was famous for
        the most celebrated work of {N} was called {V}
        """,
        asks="""
        For which work was {N} best known?
        With which work did {N} become famous?
        For which work was {N} remembered?
        Which work made the name of {N}?
        What was the masterpiece of {N}?
        With which work did {N} win renown?
        """,
        asks_test="""
        To which work did {N} owe all fame?
        Which work was {N} famous for?
        What was the most celebrated work of {N} called?
        """,
    ),
    Relation(
        "piece",
        "title",
        says="""
        {S} was first heard |in {V}
        {S} made its debut |in {V}
        {S} made its first appearance |in {V}
        {S} was first put to use |in {V}
        {V} was the first piece written for {N}
        {V} was the first piece to make use of {N}
        the first piece for {N} was {V}
        """,
        says_test="""
        {S} was introduced |in {V}
        {V} contained the first part for {N}
        the earliest work composed for {N} was {V}
        """,
        asks="""
        In which piece was {N} first heard?
        In which piece did {N} make its debut?
        In which piece did {N} make its first appearance?
        In which piece was {N} first put to use?
        What was the first piece written for {N}?
        Which piece was the first to make use of {N}?
        """,
        asks_test="""
        In which work was {N} introduced?
        Which piece contained the first part for {N}?
        What was the earliest work composed for {N}?
        """,
    ),
    # ---- reasons ------------------------------------------------------------------------------
    Relation(
        "retreat",
        "reason",
        says="""
        {S} turned back [because {V}]
        {S} gave up its plan [because {V}]
        {S} went home early, [as {V}]
        {S} had to retreat [because {V}]
        {V}, so {S} turned back
        the reason that {N} gave up was that {V}
        since {V}, {S} did not go on
        """,
        says_test="""
        {S} broke off its journey [because {V}]
        {V}, which forced {S} to retreat
        the retreat of {N} was ordered [because {V}]
        """,
        asks="""
        Why did {N} turn back?
        Why did {N} give up its plan?
        Why did {N} go home early?
        Why did {N} have to retreat?
        What was the reason that {N} gave up?
        For what reason did {N} not go on?
        """,
        asks_test="""
        Why did {N} break off its journey?
        What forced {N} to retreat?
        Why was the retreat of {N} ordered?
        """,
        stock=_ROADS,
    ),
    Relation(
        "sinking",
        "reason",
        says="""
        {S} sank [because {V}]
        {S} went down [because {V}]
        {S} could not be saved, [as {V}]
        {S} was abandoned [because {V}]
        {V}, so {S} was lost
        the reason for the loss of {N} was that {V}
        since {V}, {S} had no chance
        """,
        says_test="""
        {S} came to grief [because {V}]
        {V}, which doomed {S}
        the crew left {S} to the sea [because {V}]
        """,
        asks="""
        Why did {N} sink?
        Why did {N} go down?
        Why could {N} not be saved?
        Why was {N} abandoned?
        What was the reason for the loss of {N}?
        For what reason did {N} have no chance?
        """,
        asks_test="""
        Why did {N} come to grief?
        What doomed {N}?
        Why did the crew leave {N} to the sea?
        """,
        stock=_LEAKS,
    ),
    Relation(
        "closure",
        "reason",
        says="""
        {S} closed [because {V}]
        {S} was given up [because {V}]
        {S} could not go on, [as {V}]
        {S} had to dismiss everyone [because {V}]
        {V}, so {S} was shut down
        the reason for the end of {N} was that {V}
        since {V}, {S} had to close
        """,
        says_test="""
        {S} came to a halt [because {V}]
        {V}, which brought {S} down
        the gates of {N} were locked [because {V}]
        """,
        asks="""
        Why did {N} close?
        Why was {N} given up?
        Why could {N} not go on?
        Why did {N} have to dismiss everyone?
        What was the reason for the end of {N}?
        For what reason was {N} shut down?
        """,
        asks_test="""
        Why did {N} come to a halt?
        What brought {N} down?
        Why were the gates of {N} locked?
        """,
        stock=_MONEY,
    ),
    Relation(
        "left",
        "reason",
        says="""
        {S} left home [because {V}]
        {S} went abroad [because {V}]
        {S} could not stay, [as {V}]
        {S} packed in a hurry [because {V}]
        {V}, so {S} went away
        the reason that {N} left home was that {V}
        since {V}, {S} moved on
        """,
        says_test="""
        {S} fled [because {V}]
        {V}, which drove {O} away
        the departure of {N} was decided [because {V}]
        """,
        asks="""
        Why did {N} leave home?
        Why did {N} go abroad?
        Why could {N} not stay?
        Why did {N} pack in a hurry?
        What was the reason that {N} went away?
        For what reason did {N} move on?
        """,
        asks_test="""
        Why did {N} flee?
        What drove {N} away?
        Why was the departure of {N} decided?
        """,
        stock=_QUARRELS,
    ),
    Relation(
        "occasion",
        "reason",
        says="""
        {S} was first held [because {V}]
        {S} was a thanksgiving [because {V}]
        {S} came about [because {V}]
        {S} was called into life, [as {V}]
        {V}, so {S} was begun
        the reason for holding {N} was that {V}
        since {V}, {S} was promised to the saints
        """,
        says_test="""
        {S} was started [because {V}]
        {V}, which gave rise to {N}
        the elders agreed on {N} [because {V}]
        """,
        asks="""
        Why was {N} first held?
        For what reason was {N} a thanksgiving?
        Why did {N} come about?
        Why was {N} called into life?
        What was the reason for holding {N}?
        Why was {N} promised to the saints?
        """,
        asks_test="""
        Why was {N} started?
        What gave rise to {N}?
        Why did the elders agree on {N}?
        """,
        stock=_PERILS,
    ),
)

# Invented names: one part of each column. Some letters lie outside ASCII, for readers of bytes.
NAMES = {
    "place": (
        _parts(
            """
            Øl, Bran, Kes, Dal, Vor, Žel, Tor, Hal, Ner, Sæl, Ulm, Grim, Fen, Ost, Bry, Cal,
            Dun, Eil, Gar, Hol, Ys, Jor, Kal, Lin, Mor, Nor, Or, Pel, Quar, Ros, Stav, Tal, Ur,
            Wen, Zin, Ár, Ív, Prós, Lön, Mün, Char, Thal, Vin, Eld, Sor
            """
        ),
        ("", "", "", "en", "a", "er", "e", "o", "i"),
        _parts(
            """
            mark, wick, stad, haven, moor, ford, by, lund, vik, dale, gard, bek, minster, holm,
            rade, tova, nitz, slav, mouth, beck, croft, ness, grund, lova, strand, ting, vara,
            brück, sö, mere
            """
        ),
    ),
    "family": (
        _parts(
            """
            Ven, Bral, Kor, Tam, Sel, Hart, Lor, Ner, Pol, Dor, Gren, Mal, Fal, Zel, Ost, Run,
            Wes, Cor, Ban, Del, Eck, Hol, Jas, Kel, Lin, Mor, Nas, Ob, Per, Quil, Ras, Stav,
            Tev, Ul, Vas, Yor, Čer, Šol, Ås, Brøn, Göl, Lév
            """
        ),
        ("", "", "", "an", "e", "i", "or", "el", "a"),
        _parts(
            """
            ner, nov, quist, dard, ley, nić, né, berg, ström, sen, ton, wick, bane, roth, mann,
            dorf, ska, low, gren, vay, tess, kin, dane, rell, bourne, lock, hagen, mire, vitz,
            sted
            """
        ),
    ),
    "she": (
        _parts(
            """
            Il, Žan, Mar, Tes, Ol, El, An, Brin, Cor, Dag, Fen, Gis, Hed, In, Jol, Kar, Lis,
            Mil, Nor, Or, Pet, Ros, Sig, Tor, Ul, Vel, Wil, Yl, Zor, Ás, Søl
            """
        ),
        ("", "i", "e", "a"),
        _parts("sa, ta, ka, ra, wyn, dis, la, na, rit, via, ma, lind, tha, ně"),
    ),
    "he": (
        _parts(
            """
            Tom, Al, Ber, Cas, Dor, Ed, Fer, Gun, Hal, Iv, Jor, Kon, Lud, Mat, Nik, Os, Per,
            Rol, Stel, Tor, Ul, Val, Wal, Yar, Zden, Bør, Ján, Sör, Rón, An
            """
        ),
        ("", "e", "i", "a", "o"),
        _parts("mas, rik, bert, mir, ren, dan, vard, lo, ton, kel, gar, stan, něk, ric"),
    ),
    "ship": (
        _parts(
            """
            Grey, Silver, Bold, Patient, Northern, Copper, Quiet, Early, Wandering, Pale, Merry,
            Crimson, Faithful, Lonely, Proud, Gentle, Winter, Green, Second, Swift, Honest,
            Blue, Restless, Golden
            """
        ),
        (" ",),
        _parts(
            """
            Petrel, Heron, Otter, Lantern, Daughter, Mistral, Plover, Thistle, Comet, Marten,
            Harvest, Promise, Gannet, Sparrow, Tide, Widow, Kestrel, Narwhal, Pilgrim, Curlew,
            Fortune, Dolphin, Ember, Falcon
            """
        ),
    ),
    "instrument": (
        _parts(
            """
            vela, oro, tibi, cala, nevi, sona, luro, mira, fabu, zithe, gale, harmi, pello,
            drona, vibra, cympa, lyri, echo, turba, quilla
            """
        ),
        ("", "", "n", "l", "r", "do", "mo", "sta"),
        _parts("phone, harp, bella, tina, chord, lute, viol, cello, gamba, drum, fiddle, thyra"),
    ),
    "title": (
        _parts(
            """
            The Salt, The Glass, The Last, A Map of the, The Hollow, Songs for a, The Blue,
            Letters from the, The Paper, A Winter in the, The Drowned, The Seventh, Under the,
            The Patient, Farewell to the, The Broken, On the Nature of the, The Iron, A Short
            History of the, The Sleeping, The Borrowed, Dance of the, The Empty
            """
        ),
        (" ",),
        _parts(
            """
            Ladder, Orchard, Harbour, Lantern, Mountain, Tower, Garden, Clock, River, Winter,
            Crown, Mirror, Swallow, Island, Bell, Forest, Stairs, Comet, Wolf, Bridge, Moth,
            Staircase, Meadow, Candle, Library, Shore, Heron, Well
            """
        ),
    ),
    "wood": (
        _parts(
            """
            seasoned, tarred, pale, dark, salt-cured, split, laminated, varnished, old, smoked,
            oiled, mountain, bleached, river
            """
        ),
        (" ",),
        _parts(
            """
            oak, larch, ash, elm, cedar, pear wood, walnut, beech, juniper, alder, yew, spruce,
            lime wood, chestnut
            """
        ),
    ),
    "metal": (
        _parts("hammered, riveted, cast, polished, blackened, tinned, wrought, rolled"),
        (" ",),
        _parts("iron, brass, copper, bronze, steel, pewter, zinc, silver"),
    ),
    "trade": (
        _parts(
            """
            lens, clock, rope, sail, barrel, glass, button, mirror, lamp, paper, saddle, wheel,
            kite, whistle, needle, candle, comb, basket, organ, globe, umbrella, ink, anchor,
            brick, cheese, toy, lock, harness
            """
        ),
        (" ",),
        _parts("maker, seller, mender, polisher, painter, inspector"),
    ),
    "product": (
        _parts(
            """
            folding, copper, enamelled, painted, waterproof, collapsible, double-walled, pocket,
            self-winding, portable, nickel-plated, wicker, miniature, engraved, heated, military
            """
        ),
        (" ",),
        _parts(
            """
            lamps, barometers, trunks, umbrellas, stoves, kettles, compasses, ladders, chairs,
            tents, flutes, typewriters, bathtubs, bicycles, telescopes, mirrors, music boxes,
            sledges
            """
        ),
    ),
}

HONORIFICS = {
    "he": ("Dr", "Professor", "Captain", "Brother", "Sir"),
    "she": ("Dr", "Professor", "Captain", "Sister", "Lady"),
}
DESCRIBED_PLACES = (
    "the harbour town of",
    "the hill village of",
    "the market town of",
    "the old fortress of",
    "the river port of",
    "the spa town of",
)
MONTHS = _parts(
    """
    January, February, March, April, May, June, July, August, September, October, November,
    December
    """
)
DAYS = (
    "the first Sunday in",
    "the last Sunday in",
    "the second Monday in",
    "the third Friday in",
    "the first full moon of",
    "the longest market day in",
)

# Openings: {L} lists the names of the passage's subjects, {P} is their plural, {R} a region.
OPENINGS = (
    "the {P} of {R} have filled many books, and {L} are the ones most often described",
    "any account of {R} has to speak of its {P}, above all of {L}",
    "visitors to {R} usually hear of {L} before anything else",
    "among the {P} of {R}, the chronicles single out {L}",
    "the archive of {R} keeps papers on {L}",
    "for a student of {P}, {L} make a useful comparison",
    "much has been written about the {P} of {R}, and most of it concerns {L}",
)

OPENINGS_OF_ONE = (
    "any account of {R} has to speak of {L}",
    "the archive of {R} keeps a thick file on {L}",
    "visitors to {R} usually hear of {L} before anything else",
    "nobody who writes about the {P} of {R} can pass over {L}",
)

PREFIXES = (
    "by most accounts, ",
    "as the town registers show, ",
    "according to the chronicles, ",
    "as far as is known, ",
    "oddly enough, ",
    "if the letters can be trusted, ",
    "according to one report, ",
    "as it turned out, ",
    "as everyone agreed, ",
)
JOINTS = (", while ", ", whereas ", "; ", ", but ", ", and ")

ASIDES = _parts(
    """
    much discussed in its day, though seldom mentioned abroad, long a subject of local pride, by
    no means an ordinary case, often confused with its rivals, to general surprise, admired by
    some and mocked by others, for all its later fame, more modest than legend would have it, in
    spite of every difficulty
    """
)
ASIDES_PERSON = _parts(
    """
    never one to boast, stubborn by all accounts, whom neighbours called difficult, in spite of
    every difficulty, unknown to most at the time, restless from the beginning, according to a
    later memoir, as friends liked to recall
    """
)

# Sentences that say nothing any question asks for. They fill a passage to its length.
COLOUR = """
    Not much of this was written down at the time.
    Winters in the region were long, and news travelled slowly.
    The surviving letters are in poor condition.
    Opinions on the matter still differ.
    The evidence is thin, but it points in one direction.
    Much of what is told today is legend.
    Contemporary newspapers took little notice.
    A faded drawing in the archive shows the scene.
    The weather played its usual part.
    Some of the papers were later lost in a fire.
    Later writers have added a good deal of colour to the story.
    Nobody at the time expected the matter to be remembered.
    The older sources contradict each other on several smaller points.
    Taxes were high, and patience with grand schemes was low.
    Children still learn a rhyme about these events.
    The local dialect has a proverb about it.
    Roads in the area were poor, and everything heavy had to be moved by water.
    A small plaque recalls the events.
    Historians have argued over the details ever since.
    The correspondence gives a lively picture of daily life.
    Bread was dear in those times, and candles were dearer.
    Even the official record contains a number of errors.
    A painted screen in the town hall tells the story in pictures.
    What the neighbours thought of all this is not recorded.
    The tale has been told so often that its edges have worn smooth.
    Several songs on the subject are known, most of them unkind.
    The account books, kept in a neat hand, have survived almost complete.
    Foreign observers were puzzled and said so at length.
    The matter was debated in the taverns for a whole generation.
    It is hard to tell rumour from fact here.
    One diary describes the mood as hopeful.
    A later inquiry found nothing unusual.
    No photograph is known to exist.
    The usual ceremonies were observed.
    Money was short, as always.
    Rumours spread quickly.
    The reasons for so much secrecy are unclear.
    Old people still talk about it.
    The official history is rather dry.
    Modern scholars are more cautious.
    None of the drawings agree with each other.
    The landscape has changed a great deal in the meantime.
    Travellers who passed through described quiet streets and good beer.
    For a long time, such things were of interest only to specialists.
    The wording of the original documents is often obscure, and translations vary.
    There were no railways in that part of the country, and the post came by mule.
    A catalogue of the relevant sources has been promised for years and has never appeared.
    In the popular imagination, all of this has long since run together into a single tale.
    Collectors pay good money for the few souvenirs that turn up at auctions from time to time.
    Anyone who reads the minutes of the meetings will be struck by how much time went on trifles.
    The harvests of the period were poor, and public money was spent with great reluctance.
    Schoolbooks give the episode a few lines at best and usually get the order of events wrong.
    The evidence was first sorted by a retired teacher, whose notes are still worth reading.
    Popular guides repeat the same handful of anecdotes, few of which survive a closer look.
    The fashion of the day demanded speeches, wreaths and a brass band on every such occasion.
    Fog is common on that coast, and the old buildings are grey with salt.
    The clergy kept aloof, at least in public.
    The debt, at any rate, was paid in full.
    Such rivalry was common in those days.
    To outsiders the whole affair seemed a little absurd.
    Similar stories are told in the neighbouring valleys.
    The seals on the documents are genuine.
    Tastes changed, and so did the stories.
    A thorough study of the subject has yet to be written.
    The printed versions are full of mistakes, some of them deliberate.
    Every generation seems to have drawn its own moral from the story.
    Wolves were still seen near the outlying farms, and few people travelled alone.
    The price of salt rose and fell, and with it the fortunes of the whole district.
    In the archive, the boxes on the subject fill a long shelf beside the window.
    What has come down to us was mostly written by people who had an interest in the outcome.
"""
