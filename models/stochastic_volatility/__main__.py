from models import stochastic_volatility
from models.command import main

main(stochastic_volatility)
