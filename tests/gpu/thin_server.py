"""SGLang's server without DeepGEMM's long warm-up: it still says which shapes it wants, and compiles those it runs.

For recording what a model needs in a minute in place of many. sglang spawns its workers from this very file, so the
change reaches them too.
"""

import sys

from sglang.launch_server import run_server
from sglang.srt.layers.deep_gemm_wrapper import compile_utils
from sglang.srt.server_args import prepare_server_args

compile_utils._compile_deep_gemm_one_type_all = lambda **_: None

if __name__ == "__main__":
    run_server(prepare_server_args(sys.argv[1:]))
