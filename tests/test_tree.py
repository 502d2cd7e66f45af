"""Tests stand in the tree of the package: that of `rlrec/X/Y.py` is `tests/X/test_Y.py`, or what COVERED names."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent / "rlrec"
ELSEWHERE = {"benchmarks", "contract", "docs", "migrations"}  # folders of tests that cross the package
SUFFIXES = {".py", ".pyi", ".typed", ".md", ".html", ".css", ".sql", ".txt"}  # of the files of the package
FULL = 15  # test files of a folder, at most
COVERED = {  # test file: modules without a test file of their name, which it covers
    "app/audiences/test_examined_loop.py": ["app/audiences/environments"],
    "app/distributions/test_sparse.py": [
        "app/distributions/designs",
        "app/distributions/exact",
        "app/distributions/sum_tables",
        "app/distributions/trained",
        "app/learning/holdings",
        "store/policies/belief_deltas",
    ],
    "app/evaluation/test_people.py": ["ope/checks/machines"],
    "app/evaluation/test_checks.py": ["ope/checks/draws"],
    "app/evaluation/passes/test_fold.py": [
        "app/evaluation/passes/log_reader",
        "app/evaluation/passes/request",
        "app/evaluation/rows/groups",
    ],
    "app/evaluation/passes/test_companions.py": ["app/evaluation/passes/estimates"],
    "app/evaluation/passes/test_effects.py": ["app/evaluation/passes/pages"],
    "cli/commands/judging/test_effects.py": ["app/evaluation/passes/arm_effects"],
    "app/evaluation/targets/test_contextual.py": ["app/evaluation/targets/targets"],
    "app/evaluation/targets/test_logger_marginals.py": [
        "app/distributions/past_beliefs",
        "app/evaluation/rows/log_rows",
        "app/evaluation/targets/list_probabilities",
    ],
    "app/evaluation/targets/test_state_probabilities.py": [
        "app/evaluation/targets/cases",
    ],
    "app/experiments/test_experiment.py": [
        "app/evaluation/comparisons/holdout",
        "app/experiments/compare",
        "app/experiments/ending",
        "app/experiments/ramp",
        "store/policies/experiments",
    ],
    "cli/commands/experiments/test_plan.py": ["app/experiments/plan"],
    "app/experiments/test_route.py": ["store/policies/routes"],
    "app/imports/layouts/test_csv_map.py": ["app/imports/layouts/csv_cells"],
    "app/imports/layouts/test_layouts_out.py": ["app/imports/layouts/writers"],
    "app/imports/test_background.py": ["app/imports/layouts/jsonl"],
    "app/imports/test_import_export.py": [
        "app/imports/layouts/base",
        "app/imports/layouts/checks",
        "app/imports/visits",
        "app/imports/writer",
        "app/inputs/canonical",
        "store/log/imported_data",
    ],
    "app/imports/test_parquet_files.py": ["store/log/log_tables"],
    "app/imports/test_parquet_in.py": ["app/imports/layouts/parquet"],
    "app/imports/test_parquet_workers.py": [
        "app/evaluation/passes/passes",
        "app/imports/log_stores",
        "store/log/folder",
    ],
    "app/upkeep/test_exclusions.py": [
        "app/audit/draws/machine_sessions",
        "cli/commands/upkeep/log",
    ],
    "app/imports/test_propensities.py": ["app/imports/columns"],
    "app/judging/test_evaluate.py": [
        "app/evaluation/rows/loggers",
        "app/evaluation/targets/probabilities",
        "app/log/partitions",
    ],
    "app/judging/test_outcomes.py": [
        "app/evaluation/comparisons/interleaved",
        "app/evaluation/comparisons/study_figures",
        "app/evaluation/comparisons/unit_outcomes",
        "store/policies/people",
    ],
    "app/judging/test_positions.py": ["cli/commands/judging/position"],
    "app/learning/test_defined.py": ["app/policies/rebuild"],
    "app/learning/test_examined.py": ["app/learning/arm_means", "store/policies/curves"],
    "app/learning/test_graduation.py": ["policy/gradients/imitation"],
    "app/learning/test_ledger.py": ["store/log/contents"],
    "app/learning/test_model.py": ["store/policies/arms"],
    "app/learning/test_warm_start.py": ["app/log/stored_contexts"],
    "app/log/test_returns.py": [
        "app/serving/decision_json",
        "store/log/candidates",
        "store/log/events",
        "store/log/returns",
        "store/log/selected",
    ],
    "app/policies/test_policy_beliefs.py": ["store/log/activity"],
    "app/policies/test_train.py": [
        "app/inputs/filters",
        "app/log/splits",
        "app/training/dataset_writer",
        "store/log/sessions",
        "store/log/settings",
    ],
    "app/policies/test_versions.py": ["app/inputs/lookup", "app/learning/belief_versions"],
    "app/serving/test_narrowing.py": ["app/inputs/arm_names", "app/inputs/arm_rules", "store/policies/person_arms"],
    "app/serving/test_page_requests.py": ["app/distributions/page_layouts"],
    "app/serving/test_shadows.py": ["app/experiments/shadow"],
    "app/serving/test_visit_history.py": [
        "app/serving/draws",
        "app/serving/open_sessions",
        "app/serving/planned_requests",
        "app/serving/requests",
    ],
    "app/setup/test_simulate.py": ["app/inputs/seeds"],
    "app/training/test_ascent.py": ["app/names", "app/training/holdout_value"],
    "app/training/test_lease.py": ["app/training/report"],
    "app/upkeep/test_doctor.py": [
        "app/audit/draws/arm_counts",
        "app/audit/draws/examination",
        "app/audit/integrity/beliefs",
        "app/audit/integrity/clock",
        "app/audit/integrity/findings",
        "app/audit/integrity/live_versions",
        "app/audit/integrity/overdue",
        "app/audit/integrity/visits",
        "cli/commands/upkeep/doctor",
        "store/upkeep/audit",
    ],
    "cli/commands/judging/test_exploration.py": ["app/judging/exploration"],
    "cli/commands/judging/test_exposure.py": ["app/judging/exposure"],
    "cli/commands/judging/test_report.py": [
        "app/judging/report",
        "report/figures",
        "report/html",
    ],
    "cli/commands/judging/test_status.py": ["app/judging/status"],
    "cli/commands/policies/test_policy.py": ["app/policies/policy", "cli/commands/policies/policy_view"],
    "cli/commands/requests/test_decision.py": ["app/requests/decision"],
    "cli/commands/requests/test_user.py": ["app/requests/user", "store/policies/users"],
    "cli/commands/requests/test_feedback.py": [
        "app/requests/feedback",
        "app/requests/settle",
        "cli/commands/requests/settle",
    ],
    "cli/commands/requests/test_recommend.py": ["app/requests/recommend"],
    "cli/commands/requests/test_session.py": ["app/requests/session"],
    "cli/commands/setup/test_arm.py": ["app/setup/arm"],
    "cli/commands/setup/test_demo.py": ["app/setup/demo"],
    "cli/commands/setup/test_reward.py": ["app/setup/reward"],
    "cli/commands/upkeep/test_db_copy.py": ["app/upkeep/db_copy", "cli/commands/upkeep/db", "store/upkeep/copying"],
    "cli/commands/upkeep/test_db_forget.py": ["app/upkeep/db_removals", "store/upkeep/removals"],
    "cli/commands/upkeep/test_db_roles.py": ["app/upkeep/db_roles", "store/upkeep/roles"],
    "cli/commands/upkeep/test_import_log.py": [
        "app/upkeep/export_log",
        "cli/commands/upkeep/export_log",
    ],
    "cli/doors/test_screen.py": [
        "cli/screen/contents",
        "cli/screen/grids",
        "cli/doors/page_server",
    ],
    "cli/doors/test_serve.py": ["cli/doors/protocol", "cli/doors/writer"],
    "cli/doors/test_web.py": ["cli/doors/metrics", "cli/doors/ofrep", "cli/doors/openapi"],
    "cli/output/test_output.py": ["cli/output/plain"],
    "cli/output/test_terminal.py": ["cli/output/progress", "cli/output/tables", "cli/text/text"],
    "cli/program/test_completion.py": ["cli/program/app"],
    "cli/program/test_program.py": ["cli/program/failures", "cli/program/shared"],
    "cli/test_checklist.py": ["cli/commands/setup/help"],
    "cli/text/test_lines.py": ["cli/text/strict"],
    "cli/text/test_values.py": ["times"],
    "compute/test_engines.py": ["compute/cluster", "compute/local", "compute/worker"],
    "contract/test_kinds.py": ["policy/kinds/fixed"],
    "ope/checks/test_diagnostics.py": ["ope/checks/reasons", "ope/checks/verdicts"],
    "ope/checks/test_drift.py": ["ope/checks/times"],
    "ope/checks/test_visit_carry_over.py": ["ope/checks/dependence"],
    "ope/comparisons/test_outcomes.py": ["ope/sums/unit_visits"],
    "ope/units/test_order.py": ["ope/units/fold", "ope/units/sessions"],
    "ope/units/test_slates.py": ["ope/estimators/pseudo_inverse"],
    "policy/beliefs/test_means.py": ["policy/beliefs/base"],
    "policy/kinds/test_bandits.py": ["policy/kinds/thompson"],
    "policy/kinds/test_exp3.py": ["policy/beliefs/statistics"],
    "policy/kinds/test_kinds.py": ["app/inputs/parameters"],
    "policy/kinds/test_linear.py": ["policy/beliefs/solving"],
    "policy/kinds/test_plackett_luce.py": ["policy/kinds/odds"],
    "policy/scores/test_families.py": ["policy/scores/floors"],
    "policy/scores/test_maximum.py": ["policy/scores/families/gumbel", "policy/scores/table"],
    "policy/scores/test_sampled.py": ["policy/scores/families/correlated"],
    "policy/scores/test_tabulated.py": [
        "policy/scores/families/beta",
        "policy/scores/families/gaussian",
        "policy/scores/families/point",
        "policy/scores/panels",
        "policy/scores/scores",
    ],
    "policy/slates/test_plackett_luce.py": ["records"],
    "policy/slates/test_slate_draws.py": ["policy/scores/sweep"],
    "simulate/test_environments.py": ["simulate/base"],
    "simulate/test_shop.py": ["errors"],
    "store/database/test_bulk.py": ["store/database/arrow_worker", "store/log/reader"],
    "store/database/test_engine.py": ["store/database/database_errors", "store/log/decisions"],
    "store/database/test_schema.py": ["app/setup/init", "cli/commands/setup/init"],
    "store/database/test_tables.py": ["store/database/loading"],
    "store/database/test_views.py": ["app/log/reward_log"],
    "store/policies/test_leases.py": ["store/policies/beliefs", "store/policies/policies"],
    "test_api.py": ["app/opening"],
    "test_drafts.py": ["cli/program/files"],
}
"""Modules that another file's test covers, without the ending `.py`."""


def modules() -> set[str]:
    return {str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.rglob("*.py") if path.name[:2] != "__"}


def has_test(module: str) -> bool:
    folder, _, name = module.rpartition("/")
    return (TESTS / folder / f"test_{name}.py").exists()


def covered() -> list[str]:
    return [module for names in COVERED.values() for module in names]


def test_every_module_has_a_test_or_a_row() -> None:
    assert sorted({module for module in modules() if not has_test(module)} - {*covered()}) == []


def test_a_row_names_what_exists_and_has_no_test_of_its_name() -> None:
    assert [test for test in COVERED if not (TESTS / test).exists()] == []
    assert sorted({*covered()} - modules()) == []
    assert [module for module in covered() if has_test(module)] == []
    assert len(covered()) == len({*covered()})


def test_nothing_lies_in_the_package_that_is_not_of_it() -> None:
    files = [path for path in ROOT.rglob("*.*") if path.is_file() and "__pycache__" not in path.parts]
    assert [str(path) for path in files if path.suffix not in SUFFIXES] == []


def test_every_folder_of_tests_is_one_of_the_package() -> None:
    folders = {str(path.parent.relative_to(TESTS)) for path in TESTS.rglob("test_*.py")}
    mirrored = {folder for folder in folders if folder.split("/")[0] not in ELSEWHERE}
    assert [folder for folder in sorted(mirrored) if not (ROOT / folder / "__init__.py").exists()] == []


def test_no_folder_of_tests_is_full() -> None:
    counts = {path: len([*path.glob("test_*.py")]) for path in [TESTS, *TESTS.rglob("*")] if path.is_dir()}
    assert {str(path): count for path, count in counts.items() if count > FULL} == {}
