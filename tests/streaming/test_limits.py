from fewstep.streaming.limits import Strikes, TokenBucket


def test_a_bucket_allows_its_burst_and_then_its_rate():
    bucket = TokenBucket(10.0, 5.0)
    assert [bucket.take(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert [bucket.take(0.25) for _ in range(3)] == [True, True, False]
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]


def test_the_third_strike_within_ten_seconds_counts():
    strikes = Strikes()
    assert [strikes.add(now) for now in (0.0, 5.0, 9.9)] == [False, False, True]


def test_old_strikes_are_forgotten():
    strikes = Strikes()
    assert [strikes.add(now) for now in (0.0, 5.0, 10.1, 15.2)] == [False, False, False, False]
