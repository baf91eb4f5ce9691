import pytest
import torch

from submanifold.common import distributed
from submanifold.common.distributed import Shard


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_contain_each_row_once_and_are_of_equal_size(rows, count):
    batch = torch.arange(rows)
    shards = [Shard(index, count).rows(batch) for index in range(count)]
    assert torch.equal(torch.cat(shards), batch)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_one_process_computes_every_shard_and_communicates_nothing():
    rows = torch.arange(6.0)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.shards(3) == [Shard(0, 3), Shard(1, 3), Shard(2, 3)]
    for function in (distributed.shard, distributed.all_gather):
        assert torch.equal(function(rows), rows)
    distributed.average([rows])
    assert torch.equal(rows, torch.arange(6.0))
