"""The peer of `decoding`: the same translator and searches in PyTorch, sentences and hypotheses in one batch.

What makes it fast: packed sequences in the encoder, the attention's keys once a sentence, memories that the hypotheses of a
sentence share instead of each having a copy, states moved by one `index_select`, one step a time for all hypotheses, a stop as
soon as nothing better can come, and a batch that shrinks as sentences are done.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from s2s_jax.data.vocabulary import END, PAD, START

Weights = Mapping[tuple[Any, ...], np.ndarray]


class Translator(torch.nn.Module):
    """The model of `Workload.params`; `greedy` and `beam` give symbols [B, T], lengths and scores."""

    def __init__(self, weights: Weights, input_feeding: bool, banned: tuple[int, ...]):
        super().__init__()
        table = torch.tensor(weights["decoder", "embedding", "embedding"])
        features = table.shape[1]
        self.input_feeding, self.banned = input_feeding, list(banned)
        self.embedding = torch.nn.Embedding.from_pretrained(table)
        self.encoder = torch.nn.GRU(features, features, batch_first=True, bidirectional=True)
        for k, suffix in enumerate(("", "_reverse")):
            given = _gru(weights, ("encoder", "recurrent", "layers", 0, k))
            self._fill(self.encoder, {f"{name}_l0{suffix}": value for name, value in given.items()})
        self.cell = torch.nn.GRUCell((2 if input_feeding else 1) * features, features)
        self._fill(self.cell, _gru(weights, ("decoder", "below", "layers", 0, 0)))
        self.keys = torch.nn.Linear(2 * features, features, bias=False)
        self._fill(self.keys, {"weight": weights["decoder", "attention", "parameters", "w"]})
        self.combine = torch.nn.Linear(3 * features, features, bias=False)
        self._fill(self.combine, {"weight": weights["decoder", "combine", "kernel"].T})
        self.output = torch.nn.Linear(features, len(table))
        self._fill(self.output, {"bias": weights["decoder", "output", "bias"]})
        self.output.weight = self.embedding.weight

    @staticmethod
    def _fill(module: torch.nn.Module, values: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                module.get_parameter(name).copy_(torch.tensor(value))

    def start(self, source: torch.Tensor, lengths: torch.Tensor) -> tuple[Any, Any]:
        """Memory: keys [B, H, S], values [B, S, 2H], what the padding adds to scores [B, 1, S]; and the state [B, ...]."""
        device = self.embedding.weight.device
        source = source[:, : int(lengths.max())].to(device)
        rnn = torch.nn.utils.rnn
        packed = rnn.pack_padded_sequence(self.embedding(source), lengths, batch_first=True, enforce_sorted=False)
        packed, last = self.encoder(packed)
        values, _ = rnn.pad_packed_sequence(packed, batch_first=True)
        padding = torch.arange(values.shape[1], device=device) >= lengths.to(device)[:, None]
        masked = torch.zeros(padding.shape, device=device).masked_fill_(padding, float("-inf"))[:, None]
        hidden = last.sum(0)
        fed = hidden.new_zeros(hidden.shape) if self.input_feeding else None
        return (self.keys(values).mT.contiguous(), values, masked), (hidden, fed)

    def step(self, memory: Any, state: Any, symbols: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Logits [N, V] and the state after symbols [N], as many for each sentence of the memory."""
        keys, values, masked = memory
        hidden, fed = state
        x = self.embedding(symbols)
        hidden = self.cell(x if fed is None else torch.cat([x, fed], dim=1), hidden)
        query = hidden.view(len(keys), -1, hidden.shape[1])
        weights = torch.baddbmm(masked, query, keys).softmax(-1)
        read = torch.bmm(weights, values).view(len(hidden), -1)
        attentional = torch.tanh(self.combine(torch.cat([hidden, read], dim=1)))
        return self.output(attentional), (hidden, attentional if self.input_feeding else None)

    @torch.inference_mode()
    def greedy(self, source: torch.Tensor, lengths: torch.Tensor, max_length: int) -> tuple[torch.Tensor, ...]:
        memory, state = self.start(source, lengths)
        device, B = state[0].device, len(source)
        found = torch.full((B, max_length), PAD, device=device)
        scores, ends_at = torch.zeros(B, device=device), torch.full((B,), max_length, device=device)
        at = torch.arange(B, device=device)  # which sentences the rows are
        symbols = torch.full((B,), START, device=device)
        for t in range(max_length):
            logits, state = self.step(memory, state, symbols)
            normaliser = logits.logsumexp(1)
            logits[:, self.banned] = float("-inf")
            best, symbols = logits.max(1)
            found[at, t] = symbols
            scores[at] += best - normaliser
            ended = symbols == END
            if ended.any():
                ends_at[at[ended]] = t + 1
                keep = (~ended).nonzero()[:, 0]
                if not len(keep):
                    break
                at, symbols = at[keep], symbols[keep]
                memory, state = _rows((memory, state), keep)
        return found, ends_at, scores

    @torch.inference_mode()
    def beam(self, source: torch.Tensor, lengths: torch.Tensor, max_length: int, beam_size: int) -> tuple[torch.Tensor, ...]:
        """The best hypothesis by log probability over length; the search ends as `s2s_jax.decoding.beam_search` does."""
        memory, state = self.start(source, lengths)
        device, B, K, T = state[0].device, len(source), beam_size, max_length
        found = torch.full((B, T), PAD, device=device)
        found_lengths = torch.full((B,), T, device=device)
        found_scores = torch.full((B,), float("-inf"), device=device)
        at = torch.arange(B, device=device)  # which sentences are still searched
        best, counts, led = found_scores.clone(), torch.zeros_like(at), torch.zeros_like(at, dtype=torch.bool)  # of those
        log_probs = torch.zeros((B, 1), device=device)  # one hypothesis to begin with
        said = torch.full((B, T), PAD, device=device)
        symbols = torch.full((B,), START, device=device)
        for t in range(T):
            logits, state = self.step(memory, state, symbols)
            normaliser = logits.logsumexp(1)
            logits[:, self.banned] = float("-inf")
            # Of one hypothesis K that do not end and the end can be among the 2K best.
            width = log_probs.shape[1]
            values, likely = logits.topk(2 * K if width == 1 else K + 1)
            totals = (values - normaliser[:, None]).view(len(at), width, -1).add_(log_probs[:, :, None]).view(len(at), -1)
            totals, index = totals.topk(2 * K)
            first = torch.arange(0, len(symbols), width, device=device)[:, None]
            parents = first + index.div(values.shape[1], rounding_mode="floor")
            chosen = likely.view(len(at), -1).gather(1, index)
            ends = chosen == END
            ended = ends[:, :K]
            if ended.any():
                scores, slot = (totals[:, :K] / (t + 1)).masked_fill(~ended, float("-inf")).max(1)
                better = (scores > best).nonzero()[:, 0]
                rows = at[better]
                best[better] = scores[better]
                found[rows] = said[parents[better, slot[better]]]
                found[rows, t] = END
                found_lengths[rows], found_scores[rows] = t + 1, scores[better]
                counts += ended.sum(1)
                led |= ended[:, 0]
            log_probs, going = totals.masked_fill_(ends, float("-inf")).topk(K)
            moved, symbols = parents.gather(1, going).view(-1), chosen.gather(1, going).view(-1)
            said = said[moved]
            said[:, t] = symbols
            state = _rows(state, moved)
            reachable = torch.maximum(log_probs[:, 0] / (t + 2), log_probs[:, 0] / T)
            done = (led & (counts >= K)) | (reachable <= best)
            if done.any():
                keep = (~done).nonzero()[:, 0]
                if not len(keep):
                    break
                at, best, counts, led, log_probs = _rows((at, best, counts, led, log_probs), keep)
                memory = _rows(memory, keep)
                of_them = (K * keep[:, None] + torch.arange(K, device=device)).view(-1)
                said, symbols, state = _rows((said, symbols, state), of_them)
        else:  # those that nothing has ended are cut off
            rows = found_scores[at].isneginf().nonzero()[:, 0]
            found[at[rows]] = said[K * rows]
            found_scores[at[rows]] = log_probs[rows, 0] / T
        return found, found_lengths, found_scores


def _rows(tensors: Any, index: torch.Tensor) -> Any:
    if isinstance(tensors, tuple):
        return tuple(_rows(tensor, index) for tensor in tensors)
    return None if tensors is None else tensors.index_select(0, index)


def _gru(weights: Weights, path: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """Both have the gates r, z, n; PyTorch has a second bias, of which only the reset gate's inner one is another."""
    w, u, b, b_n = (weights[*path, name] for name in ("w", "u", "b", "b_n"))
    inner = np.concatenate([np.zeros(2 * len(b_n), b_n.dtype), b_n])
    return {"weight_ih": w.T, "weight_hh": u.T, "bias_ih": b, "bias_hh": inner}
