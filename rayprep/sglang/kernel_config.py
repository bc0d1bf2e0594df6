"""One entry of the config files that SGLang's fused MoE kernel reads.

Source: `get_moe_configs` in sglang 0.5.16, `srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py`.
"""

from pydantic import ConfigDict, Field

from rayprep.base.records import Record


class KernelConfig(Record):
    """One entry of a config file, by SGLang's own names. What is None is left out there: Triton's default counts."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, int | bool] = Field(init=False)

    BLOCK_SIZE_M: int = Field(gt=0)
    BLOCK_SIZE_N: int = Field(gt=0)
    BLOCK_SIZE_K: int = Field(gt=0)
    GROUP_SIZE_M: int = Field(gt=0)
    num_warps: int | None = None
    num_stages: int | None = None

    def entry(self) -> dict[str, int | bool]:
        """As SGLang reads it."""
        return self.model_dump(exclude_none=True)

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.entry().items())
