"""What a harness imports: it finds the run, reads it, and decides per stage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayprep.base.errors import ErrorType, HostUnfit
from rayprep.base.records import to_json
from rayprep.client import find_manifest, needs_prep, read_manifest, read_result
from rayprep.model.container_manifest import Manifest, Optimization, ProfileCache
from rayprep.model.snapshot import CacheSnapshot, ProfileSnapshot, SlugState
from rayprep.model.stages import ANSWERS_FOR, StageName, StageStatus
from tests.model.samples import MOMENT, prep_result, signature
from tests.model.test_container_manifest import manifest

EARLIER, LATER = "2025-10-09T01:00:00Z", "2025-10-09T02:00:00Z"


def warm(slug: str = "qwen", tp: int = 8, **cold: str) -> ProfileSnapshot:
    """All caches valid for one model, but those in `cold`, by their reason."""

    def cache(name: str) -> CacheSnapshot:
        why = cold.get(name)
        state = SlugState(model_slug=slug, tp_size=tp, valid=why is None, reason=why, model_source="/m")
        return CacheSnapshot(
            exists=True, valid=why is None, reason=why, path=name, slugs=(state,), signature=signature()
        )

    caches = {name.value: cache(name.value) for name in ANSWERS_FOR}
    return ProfileSnapshot.model_validate({"partial": False, "profiles_root": "/p", "taken_at": MOMENT, **caches})


def container(start: ProfileSnapshot | None = None, **optimizations: Optimization) -> Manifest:
    return manifest(profile_cache=ProfileCache(start=start), optimizations=optimizations)


def done(status: StageStatus, finished_at: str = LATER, **changes: object) -> Optimization:
    values = {"status": status, "duration_s": 1.0, "model_slug": "qwen", "tp_size": 8, "finished_at": finished_at}
    return Optimization.model_validate({**values, **changes})


class TestNeedsPrep:
    def test_nothing_where_all_is_warm(self) -> None:
        assert needs_prep(container(warm()), "qwen", tp=8) == {}
        assert needs_prep(container(warm())) == {}

    def test_everything_without_a_snapshot(self) -> None:
        assert needs_prep(container()) == dict.fromkeys(StageName, "no_snapshot")

    def test_a_stage_needs_all_of_its_caches(self) -> None:
        found = needs_prep(container(warm(sglang_jit="files_missing")), "qwen", tp=8)
        assert found == {StageName.SERVE: "files_missing"}

    @pytest.mark.parametrize(("slug", "tp"), [("qwen", 4), ("llama", 8)])
    def test_another_models_caches_do_not_count(self, slug: str, tp: int) -> None:
        assert needs_prep(container(warm()), slug, tp) == dict.fromkeys(StageName, "no_completion")

    def test_what_was_done_after_the_snapshot_counts(self) -> None:
        cold = warm(flashinfer="no_completion", deep_gemm="no_completion")
        later = container(cold, flashinfer=done(StageStatus.OK), deep_gemm=done(StageStatus.NOOP))
        assert needs_prep(later, "qwen", tp=8) == {}
        earlier = container(cold, flashinfer=done(StageStatus.OK, EARLIER))
        assert set(needs_prep(earlier, "qwen", tp=8)) == {StageName.FLASHINFER, StageName.DEEP_GEMM}
        others = container(cold, flashinfer=done(StageStatus.OK, model_slug="llama"))
        assert StageName.FLASHINFER in needs_prep(others, "qwen", tp=8)

    @pytest.mark.parametrize(
        ("how", "why"),
        [
            (done(StageStatus.ERROR, error_type=ErrorType.COMPILE_FAILED), "compile_failed"),
            (done(StageStatus.ERROR, reason="in_progress_or_aborted"), "in_progress_or_aborted"),
            (done(StageStatus.SKIPPED, reason="no_gpu"), None),
        ],
    )
    def test_what_has_failed_or_goes_on_is_not_done(self, how: Optimization, why: str | None) -> None:
        assert needs_prep(container(warm(), flashinfer=how), "qwen", tp=8).get(StageName.FLASHINFER) == why

    @pytest.mark.parametrize(("at", "why"), [(EARLIER, None), (MOMENT, "reset"), (LATER, "reset")])
    def test_what_a_reset_took_is_cold_whatever_was_there_before(self, at: str, why: str | None) -> None:
        reset = {"flashinfer": at}
        before = container(warm()).model_copy(update={"resets": reset})
        assert needs_prep(before, "qwen", tp=8).get(StageName.FLASHINFER) == why
        built = container(warm(), flashinfer=done(StageStatus.OK, MOMENT)).model_copy(update={"resets": reset})
        assert needs_prep(built, "qwen", tp=8).get(StageName.FLASHINFER) == why
        anew = container(warm(), flashinfer=done(StageStatus.OK, "2025-10-09T03:00:00Z"))
        assert needs_prep(anew.model_copy(update={"resets": reset}), "qwen", tp=8) == {}


class TestFiles:
    def write(self, root: Path, text: str, pointer: str) -> dict[str, str]:
        (root / "run.json").write_text(text, encoding="utf-8")
        (root / "container_run_meta.env").write_text(pointer.format(root=root), encoding="utf-8")
        return {"HOST_TELEMETRY_ROOT": str(root)}

    def test_the_hosts_name_is_preferred_and_the_containers_will_do(self, tmp_path: Path) -> None:
        pointer = "CONTAINER_RUN_META_JSON=/not/here.json\nCONTAINER_RUN_META_JSON_HOST={root}/run.json\n"
        assert find_manifest(self.write(tmp_path, "{}", pointer)) == tmp_path / "run.json"
        pointer = "CONTAINER_RUN_META_JSON={root}/run.json\nCONTAINER_RUN_META_JSON_HOST=/not/here.json\n"
        assert find_manifest(self.write(tmp_path, "{}", pointer)) == tmp_path / "run.json"

    def test_a_name_that_cannot_be_looked_at_is_passed_over(self, tmp_path: Path) -> None:
        """A folder that is closed to this user is another; root may look anywhere."""
        too_long = "/" + "x" * 300
        pointer = f"CONTAINER_RUN_META_JSON={{root}}/run.json\nCONTAINER_RUN_META_JSON_HOST={too_long}\n"
        assert find_manifest(self.write(tmp_path, "{}", pointer)) == tmp_path / "run.json"
        nowhere = manifest(prep_result={"container_path": "/not/here.json", "host_path": too_long})
        assert read_result(nowhere) is None

    @pytest.mark.parametrize("pointer", ["", "CONTAINER_RUN_META_JSON=", "CONTAINER_RUN_META_JSON=/not/here.json"])
    def test_a_pointer_that_leads_nowhere_says_what_to_do(self, tmp_path: Path, pointer: str) -> None:
        with pytest.raises(HostUnfit, match="leads to no manifest") as caught:
            find_manifest(self.write(tmp_path, "{}", pointer))
        assert "start_observable_container.sh" in caught.value.line

    def test_no_pointer(self, tmp_path: Path) -> None:
        with pytest.raises(HostUnfit, match="cannot be read"):
            find_manifest({"HOST_TELEMETRY_ROOT": str(tmp_path)})

    def test_what_others_have_added_is_ignored(self, tmp_path: Path) -> None:
        document = json.loads(to_json(container(warm())))
        document["theirs"] = {"a": 1}
        document["services"]["theirs"] = {"url": "http://x", "port": 1, "more": True}
        document["profile_cache"]["start"]["triton"]["new"] = []
        (tmp_path / "run.json").write_text(json.dumps(document), encoding="utf-8")
        read = read_manifest(tmp_path / "run.json")
        assert read.services["theirs"].port == 1
        assert needs_prep(read, "qwen", tp=8) == {}

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"run_id": 1}'])
    def test_a_damaged_manifest_is_one_line(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "run.json").write_text(text, encoding="utf-8")
        with pytest.raises(HostUnfit, match="is damaged") as caught:
            read_manifest(tmp_path / "run.json")
        assert len(caught.value.line.splitlines()) == 1

    def test_a_result_is_none_before_there_is_one(self, tmp_path: Path) -> None:
        path = {"container_path": "/not/here.json", "host_path": str(tmp_path / "prep_result.json")}
        found = manifest(prep_result=path)
        assert read_result(found) is None
        written = prep_result(dict.fromkeys(StageName, StageStatus.OK))
        (tmp_path / "prep_result.json").write_text(to_json(written), encoding="utf-8")
        assert read_result(found) == written


def test_a_harness_needs_nothing_but_pydantic() -> None:
    script = "import sys, rayprep.client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"ray", "typer", "psutil", "filelock", "rich", "pynvml", "jinja2"} & set(done.stdout.split())
