from models import multi_trace
from models.command import main

main(multi_trace)
