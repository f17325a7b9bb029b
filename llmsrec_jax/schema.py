"""What is fixed in results files, for those who write them and those who read them: the schema's number, and names."""

SCHEMA = 1  # of results.json, cases.json and experiments/*.json
ORIGINAL, SHUFFLED = "original", "shuffled"  # conditions: order of the test histories
POPULARITY, TEACHER, BOUND = "popularity", "teacher", "bayes bound"
PLACE = {POPULARITY: -2, TEACHER: -1, BOUND: 1}  # in tables: baselines first, the bound last
FLOOR_AND_BOUND = (POPULARITY, BOUND)  # no models of a user
