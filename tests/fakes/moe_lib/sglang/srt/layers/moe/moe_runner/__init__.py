from dataclasses import dataclass


@dataclass
class MoeRunnerConfig:
    num_experts: int
    num_local_experts: int
    inplace: bool
