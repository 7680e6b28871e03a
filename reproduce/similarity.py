"""The measured facts behind the similarity defaults, on a trained encoder and real text. Exit status 1 if one fails.

    python reproduce/similarity.py MODEL_DIR DATA_DIR

1. Adjacent similarities on the same examples at two batch sizes, in the order of the file and, since one order is one
   draw of which examples meet in a batch, averaged over random orders: the unbiased estimator stays, the biased moves.
2. Anchor clusters of the "paper" protocol equal those of a second implementation, written from the description alone.
3. Unrelated Gaussian features: the unbiased estimator gives 0, the biased one nearly 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_mpruner.architectures import BlockStack, find_block_stacks
from hf_mpruner.clusters import find_clusters
from hf_mpruner.features import measure_similarity
from hf_mpruner.similarity import SimilarityAccumulator, SimilarityProtocol, linear_cka

ESTIMATORS = ("unbiased", "biased")
THRESHOLDS = (0.99, 0.98, 0.95)
MAX_BATCH_EFFECT = 0.003
MAX_NOISE = 0.02


class Texts:
    """Tokenized texts, padded batch by batch, in one order."""

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerBase, batch: int, max_length: int) -> None:
        self.texts, self.tokenizer, self.batch, self.max_length = texts, tokenizer, batch, max_length

    def __len__(self) -> int:
        return -(-len(self.texts) // self.batch)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        settings = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        for start in range(0, len(self.texts), self.batch):
            yield self.tokenizer(self.texts[start : start + self.batch], **settings)


def paper_matrix(model: PreTrainedModel, stack: BlockStack, sentences: Texts) -> Tensor:
    """Equations 1-5, one sentence at a time: rows are its tokens, H is written out, CKA values are averaged."""
    sums, count = torch.zeros(stack.depth, stack.depth, dtype=torch.float64), 0
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, args, out: outputs.append(out if torch.is_tensor(out) else out[0]))
        for block in model.get_submodule(stack.path)
    ]
    for sentence in sentences:
        outputs.clear()
        model(**sentence)
        n = outputs[0].shape[1]
        if n < 2:
            continue
        h = torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64) / n
        centred = []
        for out in outputs:
            x = out[0].double()
            centred.append(h @ x @ x.T @ h)
        hsic = torch.tensor([[torch.sum(k * m).item() for m in centred] for k in centred], dtype=torch.float64)
        sums, count = sums + hsic / (hsic.diag().outer(hsic.diag())).sqrt(), count + 1
    for hook in hooks:
        hook.remove()
    return sums / count


def paper_clusters(similarity: Tensor, threshold: float) -> list[list[int]]:
    """Start a cluster, take layers while they resemble its first one, else start the next."""
    clusters: list[list[int]] = []
    start = 0
    while start < len(similarity):
        end = start + 1
        while end < len(similarity) and similarity[start, end] >= threshold:
            end += 1
        clusters.append(list(range(start, end)))
        start = end
    return clusters


def example_rows(
    model: PreTrainedModel, stack: BlockStack, texts: list[str], args: argparse.Namespace
) -> list[Tensor]:
    """Per layer a (examples, examples) matrix with the Gram matrix of the flattened, zero-padded block outputs."""
    kept: list[list[Tensor]] = [[] for _ in range(stack.depth)]
    settings = {"padding": "max_length", "truncation": True, "max_length": args.max_length, "return_tensors": "pt"}
    for start in range(0, len(texts), 64):
        batch = args.tokenizer(texts[start : start + 64], **settings)
        states = model(**batch, output_hidden_states=True).hidden_states[1:]
        for layer, state in zip(kept, states, strict=True):
            layer.append((state * batch["attention_mask"].unsqueeze(2)).flatten(1))
    rows = []
    for layer in kept:
        features = torch.cat(layer)
        layer.clear()
        features -= features.mean(0)
        values, vectors = torch.linalg.eigh((features @ features.T).double())
        rows.append(vectors * values.clamp(min=0).sqrt())
    return rows


def adjacent_in_order(rows: list[Tensor], order: Tensor, size: int, estimator: str) -> Tensor:
    """Adjacent similarities when the examples come in this order, `size` at a time."""
    accumulator = SimilarityAccumulator(len(rows), SimilarityProtocol(estimator))
    for part in order.split(size):
        accumulator.update([row[part] for row in rows])
    return torch.tensor(accumulator.compute().adjacent)


def check_batch_size(model: PreTrainedModel, stack: BlockStack, texts: list[str], args: argparse.Namespace) -> bool:
    """Adjacent similarities at both batch sizes, both estimators, in file order and over random orders."""
    small, large = args.batch_sizes
    print(f"\n1. adjacent similarities of {stack.path} on the same {len(texts)} examples, in the order of the file")
    columns = [(estimator, size) for estimator in ESTIMATORS for size in args.batch_sizes]
    adjacent = {}
    for estimator, size in columns:
        loader, protocol = Texts(texts, args.tokenizer, size, args.max_length), SimilarityProtocol(estimator)
        matrix = measure_similarity(model, loader, [stack], protocol=protocol)[stack.path]
        adjacent[estimator, size] = torch.tensor(matrix.adjacent)
    print("   layers " + "".join(f"{estimator:>12} {size:>3}" for estimator, size in columns))
    for i in range(stack.depth - 1):
        print(f"   {i:>2}-{i + 1:<3} " + "".join(f"{adjacent[column][i]:16.4f}" for column in columns))
    for estimator in ESTIMATORS:
        print(
            f"   {estimator}: largest difference {(adjacent[estimator, small] - adjacent[estimator, large]).abs().max():.4f}"
        )

    print(f"   over {args.num_orders} random orders, {small} against {large} in a batch:")
    rows = example_rows(model, stack, texts, args)
    orders = [
        torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)) for seed in range(args.num_orders)
    ]
    effect = {}
    for estimator in ESTIMATORS:
        moves = torch.stack(
            [
                adjacent_in_order(rows, order, small, estimator) - adjacent_in_order(rows, order, large, estimator)
                for order in orders
            ]
        )
        effect[estimator] = moves.mean(0).abs().max().item()
        spread = moves.std(0).max()
        print(f"   {estimator}: largest mean difference {effect[estimator]:.4f}, one order scatters by {spread:.4f}")
    passed = effect["unbiased"] < MAX_BATCH_EFFECT
    print(f"   unbiased, mean difference below {MAX_BATCH_EFFECT}: {'yes' if passed else 'NO'}")
    return passed


def check_paper_clusters(
    model: PreTrainedModel, stack: BlockStack, texts: list[str], args: argparse.Namespace
) -> bool:
    """The `"paper"` preset on padded batches against sentences that come alone."""
    print(
        f"\n2. anchor clusters, paper protocol, {len(texts)} examples: measure_similarity in padded batches / by hand"
    )
    loader = Texts(texts, args.tokenizer, args.batch_sizes[0], args.max_length)
    ours = measure_similarity(model, loader, [stack], protocol="paper")[stack.path].values
    theirs = paper_matrix(model, stack, Texts(texts, args.tokenizer, 1, args.max_length))
    print(f"   largest difference of a similarity: {(ours - theirs).abs().max():.1e}")
    passed = True
    for threshold in THRESHOLDS:
        clusters = [list(cluster.layers) for cluster in find_clusters(ours, threshold)]
        equal = clusters == paper_clusters(theirs, threshold)
        print(f"   {threshold}: {clusters} {'equal' if equal else f'NOT EQUAL: {paper_clusters(theirs, threshold)}'}")
        passed = passed and equal
    return passed


def check_noise(num_seeds: int) -> bool:
    """Independent Gaussians of 20 rows and 768 features."""
    print(f"\n3. unrelated Gaussian features, 20 rows x 768, {num_seeds} seeds")
    values: dict[str, list[float]] = {estimator: [] for estimator in ESTIMATORS}
    for seed in range(num_seeds):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, 20, 768, generator=generator, dtype=torch.float64)
        for estimator, found in values.items():
            found.append(linear_cka(x, y, estimator).item())
    means = {estimator: sum(found) / num_seeds for estimator, found in values.items()}
    for estimator, mean in means.items():
        print(f"   {estimator}: mean {mean:+.4f}, from {min(values[estimator]):+.4f} to {max(values[estimator]):+.4f}")
    passed = abs(means["unbiased"]) < MAX_NOISE
    print(f"   unbiased below {MAX_NOISE}: {'yes' if passed else 'NO'}")
    return passed


def main() -> int:
    """Run the three checks; 0 if all hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL_DIR", help="a trained encoder, folder or Hub id")
    parser.add_argument("data", metavar="DATA_DIR", help="folder of parquet files, or Hub id, with a text column")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--num_samples", type=int, default=1024)
    parser.add_argument("--num_sentences", type=int, default=256, help="examples for the clusters of check 2")
    parser.add_argument("--batch_sizes", type=int, nargs=2, default=(32, 256))
    parser.add_argument("--max_length", type=int, default=128, help="tokens of an example")
    parser.add_argument("--num_orders", type=int, default=20)
    parser.add_argument("--num_seeds", type=int, default=200)
    args = parser.parse_args()

    files = {args.split: f"{args.split}*.parquet"} if Path(args.data).is_dir() else None
    texts = load_dataset(args.data, data_files=files, split=args.split)[args.text_column][: args.num_samples]
    args.tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModel.from_pretrained(args.model, dtype=torch.float32).eval()
    (stack,) = find_block_stacks(model)
    with torch.no_grad():
        passed = [
            check_batch_size(model, stack, list(texts), args),
            check_paper_clusters(model, stack, list(texts)[: args.num_sentences], args),
            check_noise(args.num_seeds),
        ]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
