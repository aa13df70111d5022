//! Blocks of input and output channels, whose sums a thread's cache holds.

use super::super::filter::SumsLayout;
use super::super::product::COLS;

/// The sums of all weights in blocks of input and output channels.
pub(super) struct Blocks {
    channels: [usize; 2],
    /// Of a block; output channels are whole panels.
    pub(super) size: [usize; 2],
}

/// Input times output channels of a block whose sums, 1.3 MiB, nearly fit a second-level cache of
/// 1 MiB: with one such block the pass over tiles was still faster than that over channels.
const CACHED_SUMS: usize = 96 * 96;

impl Blocks {
    /// Blocks of like size whose sums a second-level cache holds: `at_least` so many if there are
    /// enough channels.
    pub(super) fn new(channels: [usize; 2], at_least: usize) -> Self {
        let mut blocks = Self {
            channels,
            size: channels,
        };
        let mut parts = [1, 1];
        loop {
            for (axis, step) in [COLS / 2, COLS].into_iter().enumerate() {
                let like = channels[axis].div_ceil(parts[axis]);
                blocks.size[axis] = like.next_multiple_of(step);
            }
            let [rows, cols] = blocks.size;
            let fits = rows * cols <= CACHED_SUMS && blocks.count() >= at_least;
            if fits || (rows <= COLS && cols <= COLS) {
                return blocks;
            }
            parts[usize::from(cols >= rows)] += 1;
        }
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
