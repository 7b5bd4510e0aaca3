from models import kl_policy
from models.command import main

main(kl_policy)
