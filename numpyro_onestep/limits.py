"""Up to how many dimensions each part is used: the one place that says so.

Every limit is a number of unconstrained coordinates, called d elsewhere.
"""

# The network has 256 hidden units up to here, 64 beyond: the exact volume of a step costs the
# square of the smaller of d and the number of units, for every coordinate.
WIDE_NETWORK = 128
# A second flow step is tried where one is not enough.  In more dimensions the weights are worth
# little with either number of steps.
SECOND_STEP = 128
# Tempered SMC needs a d x d Hessian at the end of every descent.
MULTIMODAL = 128
# Batch and match is cubic in d at every one of its iterations.
BATCH_AND_MATCH = 512
# Up to here a round of HMC rejuvenation has all its steps. A leapfrog step of a model with d terms
# usually takes d operations, so in more dimensions chains get fewer steps. Otherwise their time
# would grow with the square of d.
REJUVENATION = 512
# The coverage check is made up to here. It makes up to thirty descents, and in more dimensions
# each takes long.
COVERAGE_CHECK = 512
# In more dimensions no d x d matrix is formed, since factorising one takes minutes: the
# preconditioner is then a diagonal and some directions.
DENSE_MATRIX = 2048
# In fewer dimensions the map is dense: eight schools (d = 10) has lighter tails of weights with it,
# and compiles in half the time.  A structured map is tried there where the dense one's result is
# doubted, as with the neck of centred eight schools.  Below the second number of dimensions a
# structure cannot even be asked for.
STRUCTURED_MAP, SMALLEST_STRUCTURED_MAP = 48, 8
# Numbers in a batch of a structured map's draws in training, and the fewest draws.
BATCH_NUMBERS, SMALLEST_BATCH = 2**14, 8
# From here on the clip of the forces on a structured map's draws grows, and so does the gap that is
# taken for a sign of a neck.
FEW_DIMENSIONS = 50
# Numbers in a pool, and numbers that the target computes for all its draws, unless the user asks
# for more.  Above the second one HMC rejuvenation must have a need too.  A core computes some 2**30
# to 2**32 a second.
POOL_NUMBERS, EVALUATED_NUMBERS = 2**24, 2**33
# Numbers in a first pool, which is enough where its weights are even.
EVEN_POOL_NUMBERS = 2**22
NODE_WIDTH = 16  # units of the network that the nodes of a structured map share
