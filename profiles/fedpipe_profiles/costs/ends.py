"""What comes after the layers: the last norm, the head or the output matrix, the loss, and the way back through them.

Written after the causal and classification models of transformers 5 and the trainer's own loss, which makes logits only
where something is predicted and takes the loss in fp32.
"""

from dataclasses import dataclass
from typing import Literal

from fedpipe_profiles.costs.operations import Adapted, Flow, activated, capped, cast, linear, norm
from fedpipe_profiles.costs.walk import LOGITS, Arena, Back, Value

End = Literal["tokens", "first-token", "score"]
"""`tokens`: logits of every predicted token; `first-token`: a class from the first token's state; `score`: a class from
every token's state, of which one is used."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What the end of a model is made of.

    `head` counts the parameters trained whole; `predicted` the tokens that
    have logits.
    """

    end: End
    vocabulary: int
    labels: int
    predicted: float
    head: int
    outside: tuple[Adapted, ...]


def run_end(arena: Arena, flow: Flow, ending: Ending, x: Value) -> Value:
    """From the last layer's output to what the loss is taken of."""
    match ending.end:
        case "tokens":
            return _token_losses(arena, flow, ending, _last_state(arena, flow, ending, x))
        case "first-token":
            return _first_token(arena, flow, ending, x)
        case "score":
            return _classes(arena, flow, ending, norm(arena, flow, x), flow.tokens)


def _last_state(arena: Arena, flow: Flow, ending: Ending, x: Value) -> Value:
    if not flow.norm_after:
        return norm(arena, flow, x)
    for weight in ending.outside:  # BERT's transform before its output matrix
        x = norm(arena, flow, activated(arena, flow, linear(arena, flow, weight, x, (flow.hidden, flow.hidden))))
    return x


def _token_losses(arena: Arena, flow: Flow, ending: Ending, x: Value) -> Value:
    """Logits of the predicted tokens, a copy of those wanted, and its log-softmax in fp32."""
    kept = arena.apply(ending.predicted * flow.hidden * flow.width, x)
    del x
    entries = ending.predicted * ending.vocabulary
    logits = _marked(arena, arena.apply(entries * flow.width, kept, way_back=Back(view=True)))
    del kept
    if flow.block.logit_cap:
        logits = _marked(arena, capped(arena, logits, LOGITS))
    wanted = _marked(arena, arena.apply(entries * flow.width, logits))
    wide = cast(arena, wanted, entries * 4)
    del wanted
    return arena.apply(entries * 4, wide, kind=LOGITS, keep_result=True)


def _marked(arena: Arena, x: Value) -> Value:
    del arena
    x.buffer.keep(LOGITS)
    return x


def _first_token(arena: Arena, flow: Flow, ending: Ending, x: Value) -> Value:
    state = arena.apply(flow.batch * flow.hidden * flow.width, x)
    for weight in ending.outside:
        state = arena.apply(
            state.size, linear(arena, flow, weight, state, (flow.hidden, flow.hidden)), keep_result=True
        )
    return _classes(arena, flow, ending, state, flow.batch)


def _classes(arena: Arena, flow: Flow, ending: Ending, x: Value, rows: float) -> Value:
    """The head is fp32, and so is what flows into it."""
    x = cast(arena, x, x.size * 4 / flow.width)
    back = Back(trained=4.0 * ending.head, view=True)
    logits = arena.apply(rows * ending.labels * 4, x, saved=(x.buffer,), way_back=back)
    return arena.apply(logits.size, logits, kind=LOGITS, keep_result=True)
