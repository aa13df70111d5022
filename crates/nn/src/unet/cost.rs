//! What a forward pass costs: the multiply-adds of each kind of layer, by the direct algorithm.

use super::config::{Resample, UNetConfig};

/// Multiply-adds of one image's forward pass, counted as the textbook formulas do them.
///
/// A convolution of K×K counts `K K C_in C_out` per output position, borders included, whatever
/// algorithm computes it. Norms, activations, sums and resampling are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MultiplyAdds {
    /// Convolutions of 3×3.
    pub conv3x3: u64,
    /// Linear layers and convolutions of 1×1.
    pub linear: u64,
    /// The two products of attention: scores, and the sum of values.
    pub attention: u64,
}

impl MultiplyAdds {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.conv3x3 + self.linear + self.attention
    }

    /// A 3×3 convolution to `size`×`size` positions.
    fn conv3x3(&mut self, [c_in, c_out]: [usize; 2], size: usize) {
        self.conv3x3 += (9 * c_in * c_out * size * size) as u64;
    }

    /// A linear layer at `n_positions`.
    fn linear(&mut self, [c_in, c_out]: [usize; 2], n_positions: usize) {
        self.linear += (c_in * c_out * n_positions) as u64;
    }

    /// A residual block whose output has `size`×`size` positions.
    fn res_block(&mut self, config: &UNetConfig, [c_in, c_out]: [usize; 2], size: usize) {
        self.conv3x3([c_in, c_out], size);
        self.conv3x3([c_out, c_out], size);
        let embed_out = config.embed_outputs(c_out);
        self.linear([config.embed_channels(), embed_out], 1);
        if c_in != c_out {
            self.linear([c_in, c_out], size * size);
        }
    }

    fn attention_block(&mut self, c: usize, size: usize) {
        let n_positions = size * size;
        self.linear([c, 4 * c], n_positions); // queries, keys, values; projection
        self.attention += (2 * n_positions * n_positions * c) as u64;
    }

    /// A change of size to `size`×`size` positions.
    fn resample(&mut self, config: &UNetConfig, c: usize, size: usize) {
        match config.resample {
            Resample::ResBlock => self.res_block(config, [c, c], size),
            Resample::Conv => self.conv3x3([c, c], size),
        }
    }
}

impl UNetConfig {
    /// The multiply-adds of one image's forward pass.
    ///
    /// A training step costs three times as many: the forward pass, the gradients of the inputs and
    /// those of the weights.
    pub fn multiply_adds(&self) -> MultiplyAdds {
        let mut sum = MultiplyAdds::default();
        let embed = self.embed_channels();
        sum.linear([self.channels, embed], 1);
        sum.linear([embed, embed], 1);
        let n_levels = self.channel_mult.len();
        let mut c = self.level_channels(0);
        sum.conv3x3([self.in_channels, c], self.image_size);
        let mut skips = vec![c];
        for level in 0..n_levels {
            let (width, size) = (self.level_channels(level), self.level_size(level));
            for _ in 0..self.n_res_blocks {
                sum.res_block(self, [c, width], size);
                c = width;
                if self.has_attention(level) {
                    sum.attention_block(c, size);
                }
                skips.push(c);
            }
            if level + 1 < n_levels {
                sum.resample(self, c, size / 2);
                skips.push(c);
            }
        }
        let coarsest = self.level_size(n_levels.saturating_sub(1));
        sum.res_block(self, [c, c], coarsest);
        sum.attention_block(c, coarsest);
        sum.res_block(self, [c, c], coarsest);
        for level in (0..n_levels).rev() {
            let (width, size) = (self.level_channels(level), self.level_size(level));
            for i in 0..=self.n_res_blocks {
                sum.res_block(self, [c + skips.pop().unwrap_or(0), width], size);
                c = width;
                if self.has_attention(level) {
                    sum.attention_block(c, size);
                }
                if level > 0 && i == self.n_res_blocks {
                    sum.resample(self, c, 2 * size);
                }
            }
        }
        sum.conv3x3([c, self.out_channels], self.image_size);
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unet::{Heads, Order, TimeConditioning};

    fn config(image_size: usize, channels: usize, channel_mult: &[usize]) -> UNetConfig {
        UNetConfig {
            image_size,
            in_channels: 3,
            out_channels: 6,
            channels,
            channel_mult: channel_mult.to_vec(),
            n_res_blocks: 1,
            attention_resolutions: vec![16, 8],
            heads: Heads::Channels(32),
            attention_order: Order::HeadMajor,
            resample: Resample::ResBlock,
            time_conditioning: TimeConditioning::ScaleShift,
            dropout: 0.0,
            n_classes: 0,
        }
    }

    /// Half the flops that PyTorch 2.15's `FlopCounterMode` counts for the networks of `tools/bench`.
    #[test]
    fn totals_are_those_that_pytorch_counts() {
        let small = config(32, 64, &[1, 2, 2]);
        let medium = UNetConfig {
            n_res_blocks: 2,
            ..config(64, 96, &[1, 2, 3, 4])
        };
        let paper = UNetConfig {
            attention_resolutions: vec![16],
            ..config(256, 128, &[1, 1, 2, 2, 4, 4])
        };
        assert_eq!(small.multiply_adds().total(), 1_302_282_240);
        assert_eq!(medium.multiply_adds().total(), 19_795_341_312);
        assert_eq!(paper.multiply_adds().total(), 193_967_095_808);
        assert_eq!(small.multiply_adds().attention, 54_525_952);
    }

    #[test]
    fn convolutions_that_resample_count_at_their_output() {
        let plain = config(32, 64, &[1, 2]);
        let by_conv = UNetConfig {
            resample: Resample::Conv,
            attention_resolutions: vec![],
            ..plain
        };
        let by_block = UNetConfig {
            resample: Resample::ResBlock,
            ..by_conv.clone()
        };
        let saved = by_block.multiply_adds().conv3x3 - by_conv.multiply_adds().conv3x3;
        // One convolution instead of two, at 16x16 with 64 channels and at 32x32 with 128.
        assert_eq!(saved, 9 * (64 * 64 * 16 * 16 + 128 * 128 * 32 * 32));
    }
}
