"""An evidence from draws that NUTS has made: eight schools, whose log evidence is -31.31.

python -m examples.from_nuts
"""

import jax
from numpyro.infer import MCMC, NUTS

from examples.eight_schools import EFFECT, STD_ERROR, eight_schools
from numpyro_onestep import OneStep

if __name__ == "__main__":
    mcmc = MCMC(
        NUTS(eight_schools), num_warmup=1000, num_samples=1000, num_chains=4, progress_bar=False
    )
    mcmc.run(jax.random.key(0), STD_ERROR, y=EFFECT)
    sampler = OneStep(eight_schools, progress_bar=False)
    sampler.distil(jax.random.key(1), mcmc.get_samples(), STD_ERROR, y=EFFECT)
    sampler.print_summary()
    print(sampler.result.agreement)
