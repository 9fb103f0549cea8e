"""The model that comes with the package, and the texts it is given."""

from __future__ import annotations

import numpy as np

from gateway.embed.local import LocalModel


async def test_texts_that_mean_alike_are_near_each_other() -> None:
    embedder = LocalModel()
    texts = ["a crew travels through space", "astronauts on a rocket to mars", "a chef opens an Italian restaurant"]
    rows = np.array(await embedder.embed(texts), np.float32)
    await embedder.close()
    assert rows.shape == (3, embedder.dimension) == (3, 256)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > unit[0] @ unit[2]


async def test_a_text_has_the_same_vector_whatever_it_is_embedded_with() -> None:
    embedder = LocalModel()
    (alone,) = await embedder.embed(["zombie horror"])
    among = await embedder.embed(["a", "zombie horror", "something much longer than the others, to be sure"])
    await embedder.close()
    np.testing.assert_allclose(np.asarray(alone), np.asarray(among[1]), atol=1e-6)
