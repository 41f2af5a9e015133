"""What is asked in the native format, as generations. (Replies are tested through `Engine`.)"""

from __future__ import annotations

import pytest

from ramet.errors import ContextTooLong, InvalidRequest, QueueFull, RametError
from ramet.runtime.engine.native_format import NativeCall, error_of, expand, finish_reason
from ramet.runtime.request import Finish, FinishKind, LogprobParams


def test_one_prompt():
    expansion = expand(NativeCall(text="hi", rid="a", sampling_params={"max_new_tokens": 3}))
    (generation,) = expansion.generations
    assert not expansion.is_list
    assert (generation.request_id, generation.text, generation.sampling.max_new_tokens) == ("a", "hi", 3)
    assert generation.logprobs is None


def test_a_batch_distributes_its_lists():
    expansion = expand(
        NativeCall(
            input_ids=[[1, 2], [3]],
            sampling_params=[{"seed": 1}, {"seed": 2, "n": 2}],
            return_logprob=[False, True],
            top_logprobs_num=4,
            token_ids_logprob=[[1], [2, 3]],
            rid=["a", "b"],
            extra_key="k",
            cache_salt=["s", ""],
        )
    )
    assert expansion.is_list
    assert [(g.request_id, g.input_ids, g.sampling.seed, g.sampling.n) for g in expansion.generations] == [
        ("a", (1, 2), 1, 1),
        ("b-0", (3,), 2, 1),
        ("b-1", (3,), 3, 1),
    ]
    assert [g.logprobs for g in expansion.generations] == [None, *[LogprobParams(-1, 4, (2, 3))] * 2]
    assert [g.cache_namespace for g in expansion.generations] == ["k\x1fs", "k", "k"]


def test_fresh_ids_are_unique():
    expansion = expand(NativeCall(text=["a"] * 20, sampling_params={"n": 3}))
    assert len({generation.request_id for generation in expansion.generations}) == 60


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (NativeCall(), "text"),
        (NativeCall(text="a", input_ids=[1]), "text"),
        (NativeCall(text=[]), "text"),
        (NativeCall(text=["a", "b"], rid=["x"]), "rid"),
        (NativeCall(text=["a", "b"], rid=["x", "x"]), "rid"),
        (NativeCall(text="a", sampling_params={"temperatur": 1}), "temperatur"),
        (NativeCall(text=["a", "b"], return_logprob=[True]), "return_logprob"),
    ],
)
def test_errors_name_the_field(call, param):
    with pytest.raises(InvalidRequest) as raised:
        expand(call)
    assert raised.value.param == param


def test_finish_reasons():
    assert finish_reason(Finish(FinishKind.STOP, matched="x"), 3) == {"type": "stop", "matched": "x"}
    assert finish_reason(Finish(FinishKind.LENGTH), 3) == {"type": "length", "length": 3}
    aborted = finish_reason(Finish(FinishKind.ABORT, message="m", status=499, code="cancelled"), 3)
    assert aborted == {"type": "abort", "message": "m", "status_code": 499, "err_type": "cancelled"}


def test_errors_come_back_as_their_type():
    for kind in (ContextTooLong, QueueFull):
        error = error_of(Finish(FinishKind.ERROR, message="m", status=kind.status, code=kind.code))
        assert type(error) is kind
    unknown = error_of(Finish(FinishKind.ERROR, message="m", status=500, code="step_failed"))
    assert (isinstance(unknown, RametError), unknown.status, unknown.code) == (True, 500, "step_failed")
