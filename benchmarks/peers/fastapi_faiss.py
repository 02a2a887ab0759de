"""The peer of benchmarks/serving.py: one file of FastAPI and faiss, as people write it, with the same model and the same answers.

python benchmarks/peers/fastapi_faiss.py BUNDLE PORT [async]
"""

import sys
from typing import Any

import faiss
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

import twotower as tt


class Ask(BaseModel):
    query: dict[str, Any]
    k: int = 10


class Result(BaseModel):
    id: int
    score: float
    fields: dict[str, Any]


class Answer(BaseModel):
    results: list[Result]


def main() -> None:
    """Serve until it is killed."""
    bundle, port, inline = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["async"]
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    retriever = tt.Retriever.load(bundle)
    vectors = retriever.bundle.vectors.numpy()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    items = retriever.items.table.to_dicts()
    name = retriever.items.id_name
    app = FastAPI()

    def answer(ask: Ask) -> Answer:
        scores, rows = index.search(retriever.encode([ask.query]).numpy(), ask.k)
        found = [items[row] for row in rows[0]]
        return Answer(
            results=[
                Result(id=item[name], score=score, fields={k: v for k, v in item.items() if k != name})
                for item, score in zip(found, scores[0].tolist(), strict=True)
            ]
        )

    if inline:

        @app.post("/recommend")
        async def recommend(ask: Ask) -> Answer:
            return answer(ask)
    else:
        app.post("/recommend")(answer)
    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main()
