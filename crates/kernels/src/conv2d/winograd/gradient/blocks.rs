//! Blocks of input and output channels, whose sums a thread's cache holds.

use super::super::product::{COLS, ROW_STEP};
use super::sums::SumsLayout;

/// The sums of all weights in blocks of input and output channels.
pub(super) struct Blocks {
    channels: [usize; 2],
    /// Of a block; output channels are whole panels.
    pub(super) size: [usize; 2],
}

/// Input times output channels of a block whose sums, 1.3 MiB, nearly fit a second-level cache of
/// 1 MiB: with one such block the pass over tiles was still faster than that over channels.
const CACHED_SUMS: usize = 96 * 96;

/// Products per tile and channel that take as long as its transform, which each block repeats.
const TRANSFORM_COST: usize = 12;

impl Blocks {
    /// Blocks of like size whose sums a second-level cache holds, as many as keep all threads at
    /// work for the same time, each with every one of `n_groups`.
    pub(super) fn new(channels: [usize; 2], n_groups: usize, n_threads: usize) -> Self {
        let parts = |axis: usize, step: usize| {
            let channels = channels[axis];
            (1..=channels.div_ceil(COLS / 2))
                .map(move |n| channels.div_ceil(n).next_multiple_of(step))
        };
        let sizes =
            parts(0, ROW_STEP).flat_map(|rows| parts(1, COLS).map(move |cols| [rows, cols]));
        let cached = sizes.filter(|[rows, cols]| rows * cols <= CACHED_SUMS);
        let blocks = cached.map(|size| Self { channels, size });
        let slowest = |blocks: &Self| {
            let [rows, cols] = blocks.size;
            let rounds = (blocks.count() * n_groups).div_ceil(n_threads);
            rounds * (rows * cols + TRANSFORM_COST * (rows + cols))
        };
        blocks.min_by_key(slowest).unwrap_or(Self {
            channels,
            size: [ROW_STEP, COLS],
        })
    }

    pub(super) fn count(&self) -> usize {
        let [c_in, c_out] = self.channels;
        c_in.div_ceil(self.size[0]) * c_out.div_ceil(self.size[1])
    }

    pub(super) fn sums(&self, idx: usize) -> SumsLayout {
        let n_strips = self.channels[1].div_ceil(self.size[1]);
        let range = |idx: usize, size: usize, end: usize| idx * size..end.min((idx + 1) * size);
        SumsLayout::new([
            range(idx / n_strips, self.size[0], self.channels[0]),
            range(idx % n_strips, self.size[1], self.channels[1]),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_large_as_the_cache_holds_and_as_many_as_threads_share() {
        for (channels, n_groups, n_threads, size) in [
            ([64, 64], 16, 2, [64, 64]),
            ([96, 96], 8, 2, [96, 96]),
            ([288, 288], 1, 1, [96, 96]),
            ([288, 288], 1, 2, [72, 96]),
            ([384, 384], 1, 2, [96, 96]),
            ([3, 5], 1, 8, [4, 32]),
        ] {
            let blocks = Blocks::new(channels, n_groups, n_threads);
            assert_eq!(blocks.size, size, "{channels:?}, {n_threads} threads");
            let sums = (0..blocks.count()).map(|idx| blocks.sums(idx));
            let n_sums: usize = sums.map(|sums| sums.rows.len() * sums.cols.len()).sum();
            assert_eq!(n_sums, channels[0] * channels[1]);
        }
    }
}
