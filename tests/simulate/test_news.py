from __future__ import annotations

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.simulate.news import BOT_TRAIT, News


def newspaper(**parameters: float) -> News:
    news = News(**parameters)
    news.reset(1_000, np.random.default_rng(1))
    return news


def test_every_article_lives_a_day() -> None:
    for arms in (48, 10, 31):
        news, lives = News(arms=arms, bait=5), dict[str, int]()
        for hour in range(100, 172):
            articles = news.publish(hour)
            assert len({news.arm_of(name) for name in articles}) == arms
            for name in articles:
                lives[name] = lives.get(name, 0) + 1
        lifetimes = [*lives.values()][arms:-arms]
        assert len(lifetimes) >= arms - 2
        assert set(lifetimes) == {24}


def test_what_an_article_is_lasts_and_its_attraction_fades() -> None:
    news = newspaper(hype=0.0, fading=0.5)
    name = [*news.publish(100)][-1]
    arm = np.array([news.arm_of(name)])
    attraction = [float(news.attraction_of(arm)[0])]
    for hour in range(101, 124):
        assert name in news.publish(hour)
        attraction.append(float(news.attraction_of(arm)[0]))
    assert np.allclose(np.diff(attraction), -0.5 / 24 * attraction[0])
    assert name not in news.publish(124)


def test_clicks_make_an_article_popular_until_another_takes_its_place() -> None:
    news = newspaper(hype=0.5, fading=0.0)
    news.publish(100)
    before = news.attraction_of(np.arange(48))
    news.count_clicks(np.array([[3, 4], [3, 5]]), np.array([[1, 1], [1, 0]]))
    assert np.allclose(news.attraction_of(np.arange(3, 6)) / before[3:6], [1.5, 1.25, 1])
    other = newspaper(hype=0.5, fading=0.0)
    other.recall(np.arange(2), np.array([3, 4]), news.memory())
    other.publish(100)
    assert np.array_equal(other.attraction_of(np.arange(48)), news.attraction_of(np.arange(48)))
    news.publish(124)
    assert not news.clicks.any()


def test_no_article_is_clicked_more_often_than_the_bound_says() -> None:
    news = newspaper()
    for hour in range(100, 130):
        news.publish(hour)
        news.count_clicks(np.arange(48), np.arange(48) == hour % 48)
        assert np.all(news.attraction_of(np.arange(48)) <= news.attraction)


def test_bots_click_all_that_they_are_shown_and_do_not_come_again() -> None:
    """The share of bots: four standard errors, seeded, false-alarm rate 6e-5."""
    news = newspaper(bots=0.2, stay=0.0, loyalty=0.99)
    news.publish(100)
    bots = news.traits == BOT_TRAIT
    assert abs(bots.mean() - 0.2) < 4 * (0.2 * 0.8 / 1_000) ** 0.5
    pages = np.random.default_rng(2).integers(48, size=(1_000, 5))
    _, clicks, _, _, info = news.step(pages)
    assert np.all(clicks[bots] == 1)
    assert clicks[~bots].mean() < 0.5
    assert not info["purchase"][bots].any()
    assert info["purchase"][~bots].any()
    assert not info["again"][bots].any()
    assert info["again"][~bots].any()
    assert np.array_equal(news.traits == BOT_TRAIT, bots)


@pytest.mark.parametrize("parameters", [{"hype": 1.0, "lure": 0.6}, {"bots": 1.5}, {"bait": 4}, {"categories": 6}])
def test_an_impossible_newspaper_is_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(InputError):
        News(**parameters)
