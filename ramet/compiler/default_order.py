"""The passes in the order in which they run. A new pass is one line here."""

from __future__ import annotations

from ramet.compiler.passes.batch_hints import batch_hints
from ramet.compiler.passes.common_subexpression import common_subexpression
from ramet.compiler.passes.constant_fold import constant_fold
from ramet.compiler.passes.dead_code import dead_code
from ramet.compiler.passes.hoist_prefix import hoist_prefix
from ramet.compiler.passes.inline import inline
from ramet.compiler.passes.kv_liveness import kv_liveness
from ramet.compiler.passes.merge_text import merge_text
from ramet.compiler.passes.parallelize import parallelize
from ramet.compiler.passes.precompile_constraints import precompile_constraints
from ramet.compiler.passes.simplify_cfg import simplify_cfg
from ramet.compiler.pipeline import Pass, Pipeline

DEFAULT = Pipeline(
    (
        Pass("constant_fold", constant_fold),
        Pass("simplify_cfg", simplify_cfg),
        Pass("inline", inline),
        Pass("simplify_cfg", simplify_cfg),
        Pass("common_subexpression", common_subexpression),
        Pass("constant_fold", constant_fold),
        Pass("merge_text", merge_text),
        Pass("hoist_prefix", hoist_prefix),
        Pass("dead_code", dead_code),
        Pass("parallelize", parallelize),
        Pass("kv_liveness", kv_liveness),
        Pass("batch_hints", batch_hints),
        Pass("precompile_constraints", precompile_constraints),
    )
)
PASS_NAMES = tuple(dict.fromkeys(each.name for each in DEFAULT.passes))
