"""What the `inductor` stage has to do on a GPU: something only where the server's flags ask for torch.compile."""

from rayprep.model.plan import NotNeeded, StagePlan, Work
from rayprep.sglang.torch_compile import asks, captures_decode, max_batch
from rayprep.stages.protocol import StageRequest
from rayprep.stages.serve.stage import unable_to_serve

# Guesses; later runs reckon from their own history.
SECONDS_ONCE = 60.0
SECONDS_PER_BATCH = 30.0
BYTES_ONCE = 256 << 20
BYTES_PER_BATCH = 32 << 20


def plan_on_gpu(request: StageRequest) -> StagePlan:
    """One unit is the decode step at one of the batch sizes asked for, as far as the flags have it compiled."""
    flags = request.spec.server_args
    if not asks(flags):
        detail = "no --enable-torch-compile is asked for; what a server compiles all the same is the serve stage's"
        return NotNeeded(reason="no_torch_compile", detail=detail)
    if not captures_decode(flags):
        return NotNeeded(reason="no_decode_graphs", detail="SGLang compiles only what decode captures as CUDA graphs")
    if unable := unable_to_serve(request.signature):
        return unable
    asked = request.spec.batch_sizes
    largest = max_batch(flags)
    if largest == 0:
        return NotNeeded(reason="no_decode_graphs", detail="the flags have no batch size compiled")
    sizes = sorted({min(size, largest or size) for size in asked})
    return Work(
        units=tuple(f"decode:cuda:b{size}" for size in sizes),
        required_bytes=BYTES_ONCE + BYTES_PER_BATCH * len(sizes),
        seconds=SECONDS_ONCE + SECONDS_PER_BATCH * len(sizes),
        estimate="one server's start and the shipped guess for each batch size",
        by_sglang=True,
    )
