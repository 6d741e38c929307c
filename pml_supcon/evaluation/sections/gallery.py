"""The section "gallery": the test images with the worst retrieval, and their neighbours."""

from dataclasses import dataclass

from pml_supcon.evaluation.context import EvaluationContext
from pml_supcon.evaluation.sections.retrieval import open_search
from pml_supcon.metrics.gallery import worst_queries


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A neighbour of a query: its row among the references, its class, and its cosine similarity."""

    reference: int
    label: str
    right: bool
    similarity: float


@dataclass(frozen=True, kw_only=True)
class GalleryQuery:
    """A query: its row among the test images, its class, its average precision, and its nearest neighbours."""

    query: int
    label: str
    score: float
    neighbours: list[Neighbour]


def gallery(context: EvaluationContext) -> list[GalleryQuery] | None:
    """Return the test images with the lowest average precision over their neighbours, the worst first."""
    search = open_search(context)
    if search is None:
        return None
    worst = worst_queries(
        *search[:4],
        queries=context.settings.gallery_queries,
        neighbours=context.settings.gallery_neighbours,
        ref_includes_query=search.same_images,
    )
    names = context.data.class_names
    query_labels, reference_labels = search.query_labels.tolist(), search.reference_labels.tolist()
    return [
        GalleryQuery(
            query=row,
            label=names[query_labels[row]],
            score=score,
            neighbours=[
                Neighbour(
                    reference=reference,
                    label=names[reference_labels[reference]],
                    right=reference_labels[reference] == query_labels[row],
                    similarity=similarity,
                )
                for reference, similarity in zip(references, similarities, strict=True)
            ],
        )
        for row, score, references, similarities in zip(*(part.tolist() for part in worst), strict=True)
    ]
