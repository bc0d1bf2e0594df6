"""A short server start for a run in which no other server starts: its log has to name the tuned config."""

from dataclasses import replace
from pathlib import PurePath

from rayprep.base.errors import ErrorType, StageError
from rayprep.model.caches import CacheName
from rayprep.model.result import Artifacts, ServerRecord
from rayprep.model.stages import StageName
from rayprep.server.server import Server
from rayprep.sglang.moe_config_lines import complaint
from rayprep.sglang.torch_compile import without
from rayprep.stages.moe_tune.second_try import SecondTry, withdrawn_error
from rayprep.stages.protocol import BuildContext, Built, StageRequest
from rayprep.stages.warmup_server import record_of, warmup_server


def confirm_by_server(request: StageRequest, context: BuildContext, built: Built) -> Built:
    """Starts the server that the request implies, but for torch.compile, until it is ready, and reads its log.

    Raises:
        StageError: `verify_log_missing`; `withdrawn` where it starts without the config alone; or it did not start.
        Interrupted: the run was cancelled.
    """
    layout, facts = context.layout, built.artifacts or Artifacts()
    env = {**context.env, "SGLANG_MOE_CONFIG_DIR": str(layout.cache(CacheName.MOE_CONFIGS))}
    flags = without(request.spec.server_args)  # what is compiled, or does not compile, is another stage's to say

    def start() -> tuple[Server, ServerRecord]:
        with warmup_server(request.with_server_args(flags), context, env) as server:
            server.start()
            return server, record_of(server, request.spec.load_format)

    def say(hint: str) -> None:
        context.report(hint, None, None)

    trying = SecondTry(request, layout, start, say, tuple(built.used), context.alone)
    (server, record), asides = trying.go()
    if withdrawn := [aside for aside in asides if aside.stage is StageName.MOE_TUNE]:
        raise withdrawn_error(withdrawn[0])
    said = server.reader.moe_configs
    config = PurePath(facts.config_file.container_path if facts.config_file else "")
    if not said.uses(config):
        raise StageError(ErrorType.VERIFY_LOG_MISSING, complaint(config, said), log_tail=server.log_tail())
    confirmed = facts.model_copy(update={"verified_in_log": True, "verify_log": layout.located(context.log)})
    warnings = (*built.warnings, *(aside.message for aside in asides))
    return replace(built, server=record, moe_configs=said, artifacts=confirmed, warnings=warnings)
