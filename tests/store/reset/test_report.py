"""The pure choice of a reset: what goes, what stays, and which completions and markers still mean something."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import BadRequest
from rayprep.model.caches import CacheName
from rayprep.model.stages import STAGES, StageName
from rayprep.store.reset.filters import Filters, make_filters
from rayprep.store.reset.report import Outcome, planned, report_of
from rayprep.store.reset.selection import Claim, Found, Kept, Store

NOW = 1_800_000_000.0
DAY = 86400.0
SLUGS = ("qwen3-8b", "qwen3-30b", "llama-3")
SOME = (CacheName.DEEP_GEMM, CacheName.TRITON, CacheName.OTHERS)
FILLING = (StageName.DEEP_GEMM, StageName.MOE_TUNE, StageName.SERVE)
"""One cache of each kind: one of its stage alone, one that two stages fill, one of several of a stage."""

filters_of = st.builds(
    Filters,
    stages=st.sampled_from([(), *((stage,) for stage in FILLING)]),
    older_than_days=st.sampled_from([None, 1.0, 30.0]),
    match_slug=st.sampled_from([None, "q", "qwen3-8b", "nobody"]),
    unreferenced=st.booleans(),
)


def found(cache: CacheName, path: str, *slugs: str, days: float = 0.0) -> Found:
    return Found((cache, path), f"{cache}/{path}", (path,), 10, 1, NOW - days * DAY, frozenset(slugs))


@st.composite
def stores(draw: st.DrawFn, *, opaque: bool = True) -> Store:
    """A store whose entries are named by its claims, and by nothing else."""
    filters = draw(filters_of)
    keys = [(cache, f"e{number}") for cache in SOME for number in range(2)]
    names = {key: draw(st.sets(st.sampled_from(SLUGS))) for key in keys}
    claims = [
        Claim(
            stage=stage,
            key=f"{slug}-tp1",
            slug=slug,
            entries=frozenset(key for key in keys if slug in names[key] and key[0] in STAGES[stage].caches),
            skipped=draw(st.booleans()),
            broken=draw(st.booleans()),
            opaque=opaque and draw(st.booleans()),
            finished=NOW - draw(st.sampled_from([0.0, 40.0])) * DAY,
        )
        for stage in FILLING
        for slug in SLUGS
    ]
    entries = [
        found(*key, *slugs, days=draw(st.sampled_from([40.0, 2.0, -5.0])))
        for key, slugs in names.items()
        if key[0] in filters.caches
    ]
    marks = draw(st.dictionaries(st.tuples(st.sampled_from(SLUGS), st.sampled_from(FILLING)), st.just(NOW - 3 * DAY)))
    return Store(filters, NOW, tuple(entries), tuple(claims), marks)


@given(stores(opaque=False), st.sampled_from(["q", "qwen3-8b"]))
def test_never_what_another_slug_names_nor_what_no_matching_slug_names(store: Store, prefix: str) -> None:
    filters = store.filters.model_copy(update={"match_slug": prefix, "older_than_days": None})
    theirs = {key for claim in store.claims if not claim.slug.startswith(prefix) for key in claim.entries}
    victims = planned(replace(store, filters=filters)).keys
    assert not victims & theirs
    assert victims <= {key for claim in store.claims for key in claim.entries}


@given(stores())
def test_unreferenced_takes_nothing_that_is_named(store: Store) -> None:
    if store.filters.unreferenced:
        named = {key for claim in store.claims for key in claim.entries}
        assert not planned(store).keys & named
        assert not planned(store).completions


@given(stores())
def test_a_completion_that_cannot_be_read_guards_its_stages_caches(store: Store) -> None:
    stages = store.filters.stages
    for filters in (Filters(stages=stages, unreferenced=True), Filters(stages=stages, match_slug="q")):
        victims = replace(store, filters=filters).victims
        for claim in store.claims:
            if claim.opaque and (filters.unreferenced or not filters.fits_slug(claim.slug)):
                assert not any(entry.key[0] in STAGES[claim.stage].caches for entry in victims)


@given(stores())
def test_only_selected_caches_and_only_old_enough(store: Store) -> None:
    days = store.filters.older_than_days
    for entry in store.victims:
        assert entry.key[0] in store.filters.caches
        assert days is None or entry.newest < NOW - days * DAY


@given(stores(opaque=False))
def test_filters_combine_with_and(store: Store) -> None:
    none = Filters(stages=store.filters.stages)
    fields = ("older_than_days", "match_slug", "unreferenced")
    alone = [none.model_copy(update={name: getattr(store.filters, name)}) for name in fields]
    chosen = [planned(replace(store, filters=each)).keys for each in alone]
    assert planned(store).keys == chosen[0] & chosen[1] & chosen[2]


@given(stores())
def test_no_completion_that_names_a_removed_entry_outlives_it(store: Store) -> None:
    plan = planned(store)
    for claim in store.claims:
        assert claim in plan.completions or not claim.entries & plan.keys


@given(stores())
def test_no_completion_and_no_marker_of_another_slug_or_stage_is_dropped(store: Store) -> None:
    plan = planned(store)
    assert all(store.filters.fits_slug(claim.slug) for claim in plan.completions)
    assert all(store.filters.fits(stage, slug) for slug, stage in plan.markers)


@given(stores())
def test_every_entry_is_accounted_for(store: Store) -> None:
    report = report_of(store, planned(store), "r", "/p", dry_run=True)
    assert len(report.removed) + sum(report.kept.values()) == len(store.found)
    assert report.freed_bytes == sum(entry.bytes for entry in report.removed)


@given(stores())
def test_what_failed_is_kept_and_said(store: Store) -> None:
    report = report_of(store, Outcome(failures=["no"]), "r", "/p", dry_run=False)
    assert report.kept.get(Kept.FAILED, 0) == len(store.victims)
    assert (report.exit_code, report.removed) == (3, ())


def test_without_a_filter_everything_goes() -> None:
    everything = tuple(found(cache, "e", *SLUGS[:1], days=-1) for cache in CacheName)
    assert Store(Filters(), NOW, everything).victims == list(everything)


def test_an_entry_from_the_future_is_not_old() -> None:
    filters = make_filters((), 1, None, False)
    old, edge, future = (found(CacheName.TRITON, name, days=days) for name, days in (("o", 1.01), ("e", 1), ("f", -9)))
    assert Store(filters, NOW, (old, edge, future)).victims == [old]


@pytest.mark.parametrize("days", [0, -1, -0.5, float("nan"), float("inf")])
def test_an_age_that_is_none(days: float) -> None:
    with pytest.raises(BadRequest, match="--older-than"):
        make_filters((), days, None, False)


def test_an_empty_prefix_is_refused_and_case_does_not_matter() -> None:
    with pytest.raises(BadRequest, match="--match-slug"):
        make_filters((), None, "", False)
    assert make_filters((), None, "Qwen3", False).fits_slug("qwen3-8b")


def skip(slug: str, *, days: float = 0.0) -> Claim:
    return Claim(StageName.FLASHINFER, f"{slug}-tp1-x", slug, skipped=True, finished=NOW - days * DAY)


def test_skipped_completions_go_only_by_slug_stage_and_age() -> None:
    mine, others = skip("qwen3-8b"), skip("llama-3")

    def dropped(**filters: object) -> list[Claim]:
        return planned(Store(Filters.model_validate(filters), NOW, (), (mine, others))).completions

    assert dropped() == []
    assert dropped(match_slug="qwen") == [mine]
    assert dropped(match_slug="qwen", stages=(StageName.INDUCTOR,)) == []
    assert dropped(match_slug="qwen", older_than_days=1) == []
    assert planned(Store(Filters(match_slug="q", older_than_days=1), NOW, (), (skip("q", days=2),))).completions


def test_a_broken_completion_keeps_its_knowledge_while_only_old_entries_go() -> None:
    broken = Claim(StageName.DEEP_GEMM, "k", "q", entries=frozenset({(CacheName.DEEP_GEMM, "cache/k")}), broken=True)
    assert planned(Store(Filters(older_than_days=1), NOW, (), (broken,))).completions == []
    assert planned(Store(Filters(unreferenced=True), NOW, (), (broken,))).completions == []
    assert planned(Store(Filters(), NOW, (), (broken,))).completions == [broken]
    assert planned(Store(Filters(match_slug="q"), NOW, (), (broken,))).completions == [broken]
    assert planned(Store(Filters(stages=(StageName.INDUCTOR,)), NOW, (), (broken,))).completions == []


def test_an_unreadable_completion_goes_only_with_the_whole_cache() -> None:
    hidden = Claim(StageName.DEEP_GEMM, "k", "q", opaque=True)
    entry = found(CacheName.DEEP_GEMM, "cache/k", days=9)
    assert planned(Store(Filters(), NOW, (entry,), (hidden,))).completions == [hidden]
    assert Store(Filters(), NOW, (entry,), (hidden,)).stale_claims(frozenset()) == []
    for filters in (Filters(older_than_days=1), Filters(match_slug="q"), Filters(unreferenced=True)):
        assert planned(Store(filters, NOW, (entry,), (hidden,))).completions == []


def test_an_unreadable_completion_of_the_slug_itself_hides_nothing_of_others() -> None:
    own, theirs = (Claim(StageName.DEEP_GEMM, "k", slug, opaque=True) for slug in ("qwen", ""))
    entry = found(CacheName.DEEP_GEMM, "cache/k", "qwen")
    assert Store(Filters(match_slug="qwen"), NOW, (entry,), (own,)).victims == [entry]
    assert Store(Filters(match_slug="qwen"), NOW, (entry,), (theirs,)).victims == []


MARK = {("qwen", StageName.DEEP_GEMM): NOW - DAY, ("llama", StageName.INDUCTOR): NOW - DAY}


@pytest.mark.parametrize(
    ("filters", "gone"),
    [
        (Filters(), set(MARK)),
        (Filters(match_slug="q"), {("qwen", StageName.DEEP_GEMM)}),
        (Filters(stages=(StageName.INDUCTOR,)), {("llama", StageName.INDUCTOR)}),
        (Filters(older_than_days=1), set()),
        (Filters(unreferenced=True), set()),
        (Filters(match_slug="q", older_than_days=1), set()),
    ],
)
def test_markers_go_with_the_work_that_was_asked_to_go(filters: Filters, gone: set[tuple[str, StageName]]) -> None:
    assert set(planned(Store(filters, NOW, (), (), MARK)).markers) == gone


def test_a_marker_stays_while_its_runs_half_built_entry_may_be_there() -> None:
    half, older = found(CacheName.DEEP_GEMM, "cache/half"), found(CacheName.DEEP_GEMM, "cache/older", days=2)
    theirs = found(CacheName.DEEP_GEMM, "cache/theirs", "llama")
    filters = Filters(match_slug="qwen")
    assert planned(Store(filters, NOW, (half, older, theirs), (), MARK)).markers == []
    assert planned(Store(filters, NOW, (older, theirs), (), MARK)).markers == [("qwen", StageName.DEEP_GEMM)]
    said = report_of(Store(filters, NOW, (half,), (), MARK), Outcome(), "r", "/p", dry_run=False).warnings
    assert len(said) == 1
    assert ".in_progress/qwen/deep_gemm" in said[0]


def test_a_marker_stays_when_its_work_could_not_be_removed() -> None:
    store = Store(Filters(), NOW, (found(CacheName.DEEP_GEMM, "cache/k"),), (), MARK)
    assert store.finished_markers(frozenset()) == [("llama", StageName.INDUCTOR)]
