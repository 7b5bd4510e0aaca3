from models import changepoint
from models.command import main

main(changepoint)
