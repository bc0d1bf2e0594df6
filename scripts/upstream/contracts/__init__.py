"""The table: a file for each sort of thing that rayprep names. To add a row, see `contract.rows`."""

from scripts.upstream.contract import Contract
from scripts.upstream.contracts.flags import FLAGS
from scripts.upstream.contracts.functions import FUNCTIONS
from scripts.upstream.contracts.kernels import KERNELS
from scripts.upstream.contracts.log import LOG
from scripts.upstream.contracts.releases import RELEASES
from scripts.upstream.contracts.serving import SERVING
from scripts.upstream.contracts.variables import VARIABLES

CONTRACTS: tuple[Contract, ...] = (*VARIABLES, *FLAGS, *LOG, *FUNCTIONS, *KERNELS, *RELEASES, *SERVING)
