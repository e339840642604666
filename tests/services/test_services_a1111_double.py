"""The double of Automatic1111 is true: an independent client of that API, `webuiapi`, works with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import webuiapi
from PIL import Image

from tests.doubles.a1111 import MODELS, SAMPLERS, A1111Double, in_thread


@pytest.fixture(scope="module")
def api() -> Iterator[webuiapi.WebUIApi]:
    with in_thread(A1111Double()) as double:
        yield webuiapi.WebUIApi(host="127.0.0.1", port=double.port, sampler="Euler a", steps=2)


def test_pictures_are_made_and_changed(api: webuiapi.WebUIApi) -> None:
    assert len(api.txt2img(prompt="a cat", seed=7, batch_size=2).images) == 2
    made = api.txt2img(prompt="a cat", seed=7, batch_size=2, save_images=True)
    assert [image.size for image in made.images] == [(8, 8)] * 3  # with the grid
    assert made.info["all_seeds"] == [7, 8]
    assert made.parameters["sampler_name"] == "Euler a"
    assert made.images[1].getpixel((0, 0)) == (7, 0, 0)
    changed = api.img2img(images=[made.images[1]], prompt="a dog", seed=9)
    assert changed.image.getpixel((0, 0)) == (9, 0, 0)


def test_extras_and_questions(api: webuiapi.WebUIApi) -> None:
    square = Image.new("RGB", (4, 4))
    assert api.extra_single_image(image=square, upscaler_1="None").image.size == (8, 8)
    assert len(api.extra_batch_images(images=[square, square], upscaler_1="None").images) == 2
    assert api.interrogate(image=square).info == "a small square"
    assert [sampler["name"] for sampler in api.get_samplers()] == list(SAMPLERS)
    assert api.util_get_model_names() == sorted(model["title"] for model in MODELS)
    assert api.get_memory()["cuda"]["system"]["total"] == 8 << 30
    assert api.get_loras()[0]["name"] == "ink"


def test_models_are_switched(api: webuiapi.WebUIApi) -> None:
    api.util_set_model("paint")
    assert api.util_get_current_model() == MODELS[1]["title"]
    assert api.txt2img(seed=1).info["sd_model_name"] == "paint"
    api.set_options({"sd_model_checkpoint": MODELS[0]["title"]})


def test_progress_and_interrupts(api: webuiapi.WebUIApi) -> None:
    progress = api.get_progress()
    assert (progress["progress"], progress["state"]["job_count"]) == (0.0, 0)
    assert api.interrupt() == {}
    api.util_wait_for_ready(0.01)


def test_errors_are_errors(api: webuiapi.WebUIApi) -> None:
    assert api.txt2img(sampler_name="Nobody").info["sampler_name"] == "DPM++ 2M"  # replaced without a word
    with pytest.raises(RuntimeError, match="422"):
        api.txt2img(script_name="nobody")
