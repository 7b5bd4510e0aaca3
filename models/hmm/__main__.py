from models import hmm
from models.command import main

main(hmm)
