//! Decoded images, kept in memory as far as a budget goes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use image::RgbImage;

/// Bytes of pixels kept: all of 80,000 images of 64x64. What is beyond is decoded anew each time.
const MAX_BYTES: usize = 1 << 30;

/// What is known about a file since its pixels were first asked for.
#[derive(Debug)]
pub(super) enum Known {
    Pixels(Arc<RgbImage>),
    Damaged,
}

/// A place for each file.
#[derive(Debug)]
pub(super) struct Cache {
    places: Vec<OnceLock<Known>>,
    n_bytes: AtomicUsize,
    pub(super) max_bytes: usize,
}

impl Cache {
    /// Empty places for `n_files` files.
    pub(super) fn new(n_files: usize) -> Self {
        let places = (0..n_files).map(|_| OnceLock::new()).collect();
        Self {
            places,
            n_bytes: AtomicUsize::new(0),
            max_bytes: MAX_BYTES,
        }
    }

    pub(super) fn get(&self, file_idx: usize) -> Option<&Known> {
        self.places.get(file_idx)?.get()
    }

    /// Keeps the pixels of a file, unless that exceeds the budget.
    pub(super) fn keep(&self, file_idx: usize, pixels: &Arc<RgbImage>) {
        let n_bytes = pixels.as_raw().len();
        let before = self.n_bytes.fetch_add(n_bytes, Ordering::Relaxed);
        let fits = before.saturating_add(n_bytes) <= self.max_bytes;
        let known = Known::Pixels(Arc::clone(pixels));
        if !(fits && self.places[file_idx].set(known).is_ok()) {
            self.n_bytes.fetch_sub(n_bytes, Ordering::Relaxed);
        }
    }

    /// Notes that a file is damaged. True if that was not known before.
    pub(super) fn note_damage(&self, file_idx: usize) -> bool {
        self.places[file_idx].set(Known::Damaged).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_kept_up_to_the_budget() {
        let mut cache = Cache::new(3);
        cache.max_bytes = 2 * 12;
        let pixels = Arc::new(RgbImage::new(2, 2));
        for file_idx in [0, 0, 1, 2] {
            cache.keep(file_idx, &pixels);
        }
        assert!(matches!(cache.get(0), Some(Known::Pixels(_))));
        assert!(matches!(cache.get(1), Some(Known::Pixels(_))));
        assert!(cache.get(2).is_none());
    }

    #[test]
    fn damage_is_news_once() {
        let cache = Cache::new(1);
        assert!(cache.note_damage(0));
        assert!(!cache.note_damage(0));
        assert!(matches!(cache.get(0), Some(Known::Damaged)));
    }
}
