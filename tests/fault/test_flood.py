"""A flood of malformed messages, and many clients, on a small scale; `tools/soak` runs them on a large scale."""

from tests.harness.load import clients, flood

SMALL = ("network.widths=[64,64]", "network.replay_buffer=1000", "checkpoint.every_s=1")
WARM_SAMPLES = 2048


def test_a_flood_of_malformed_messages_does_not_affect_other_clients() -> None:
    result = flood.run(6000, quiet_s=1.0, settings=SMALL, warm_samples=WARM_SAMPLES, warm_messages=6000, rest_s=0.2)
    assert result["broken"] == []
    assert result["messages"] == 6000
    assert result["rejected_counted"] == result["answerable"] == sum(result["codes"].values()) > 5000
    assert result["others_errors"] == 0
    assert result["descriptors_after"] <= result["descriptors_before"] + flood.DESCRIPTORS.absolute
    assert result["others_flooded"]["acks"]["per_second"] > 0


def test_many_clients_are_served_and_leave_no_memory_or_descriptors_behind() -> None:
    result = clients.run(40, rounds=2, settings=SMALL, warm_samples=WARM_SAMPLES, rest_s=0.2)
    assert result["broken"] == []
    assert result["served"] == 40
    assert result["acked"] == 2 * 40 * clients.MESSAGES * clients.SAMPLES
    assert result["descriptors_peak"] >= 80
