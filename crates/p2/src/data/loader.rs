//! Batches of training images, decoded ahead of time on threads of their own.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, anyhow};

use super::dataset::{Dataset, Image, Split};
use super::order::Order;
use super::pixel_from_byte;
use crate::rng::{Draws, Stream};

/// Images that travel together between threads: enough to make the trip cheap.
const CHUNK_IMAGES: u64 = 8;

/// Chunks that wait at the end of each thread.
const CHUNKS_AHEAD: usize = 2;

/// Batches that wait for the run.
const BATCHES_AHEAD: usize = 2;

/// Which images of a run are loaded, and how. All but the first two leave the images as they are.
#[derive(Debug, Clone, Copy)]
pub struct LoaderOptions {
    /// Seed of the order, the crops and the mirroring.
    pub seed: u64,
    /// The first image of the first batch, as a place in the run; 0, or where a run resumes.
    pub first_image_idx: u64,
    /// Images in a batch.
    pub batch_size: NonZeroUsize,
    /// Images of the whole run: loading ends before this place. The last batch may be smaller.
    pub total_images: u64,
    /// Threads that decode.
    pub n_workers: NonZeroUsize,
}

/// Consecutive images of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Place of the first image in the run.
    pub first_image_idx: u64,
    /// `[N, H, W, 3]` in `[-1, 1]`.
    pub pixels: Vec<f32>,
    /// `[N]`, indices into [`Dataset::class_names`].
    pub labels: Vec<u32>,
    /// `[N]`, names of the files.
    pub files: Vec<Arc<str>>,
}

impl Batch {
    /// Number of images.
    pub fn n_images(&self) -> usize {
        self.labels.len()
    }

    /// The pixels of the images `first .. first + n`.
    pub(crate) fn pixels_of(&self, first: usize, n: usize) -> &[f32] {
        let per_image = self.pixels.len() / self.n_images().max(1);
        &self.pixels[first * per_image..(first + n) * per_image]
    }

    fn empty(first_image_idx: u64) -> Self {
        Self {
            first_image_idx,
            pixels: Vec::new(),
            labels: Vec::new(),
            files: Vec::new(),
        }
    }

    fn push(&mut self, image: Image) {
        self.pixels
            .extend(image.pixels.iter().map(|&byte| pixel_from_byte(byte)));
        self.labels.push(image.label);
        self.files.push(image.file);
    }
}

/// Loads the images of a run in order. Dropping it stops its threads.
#[derive(Debug)]
pub struct Loader {
    batches: Option<Receiver<Result<Batch>>>,
    threads: Vec<JoinHandle<()>>,
    next_image_idx: u64,
    total_images: u64,
}

impl Loader {
    /// Starts loading.
    ///
    /// # Errors
    /// If the dataset has no training image, or the system gives no thread.
    pub fn new(dataset: &Arc<Dataset>, options: &LoaderOptions) -> Result<Self> {
        let order = Order::new(options.seed, dataset.n_images(Split::Training))?;
        let mut threads = Vec::new();
        let mut chunks = Vec::new();
        for worker_idx in 0..options.n_workers.get() as u64 {
            let (sender, receiver) = sync_channel(CHUNKS_AHEAD);
            chunks.push(receiver);
            let worker = Worker {
                dataset: Arc::clone(dataset),
                order: order.clone(),
                options: *options,
            };
            threads.push(spawn("p2-decode", move || worker.run(worker_idx, &sender))?);
        }
        let (sender, batches) = sync_channel(BATCHES_AHEAD);
        let options = *options;
        threads.push(spawn("p2-batch", move || {
            assemble(&chunks, &options, &sender);
        })?);
        let (next_image_idx, total_images) = (options.first_image_idx, options.total_images);
        Ok(Self {
            batches: Some(batches),
            threads,
            next_image_idx,
            total_images,
        })
    }

    /// The next batch; `None` after the last.
    ///
    /// # Errors
    /// If no training image can be decoded.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        if self.next_image_idx >= self.total_images {
            return Ok(None);
        }
        let batch = self
            .batches
            .as_ref()
            .and_then(|batches| batches.recv().ok());
        let batch = batch.ok_or_else(|| {
            anyhow!(
                "loading ended before image {} of the run",
                self.next_image_idx
            )
        })??;
        self.next_image_idx += batch.n_images() as u64;
        Ok(Some(batch))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Without a receiver the next send of each thread fails, and that ends it.
        self.batches = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on stderr; there is nothing left to save here.
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .context("cannot start a loader thread")
}

type Chunk = Result<Vec<Image>>;

/// One of the threads that decode.
struct Worker {
    dataset: Arc<Dataset>,
    order: Order,
    options: LoaderOptions,
}

impl Worker {
    /// Makes every `n_workers`-th chunk, until all are made, one fails, or nobody listens.
    fn run(mut self, worker_idx: u64, chunks: &SyncSender<Chunk>) {
        let LoaderOptions {
            first_image_idx,
            total_images,
            n_workers,
            ..
        } = self.options;
        let mut start = first_image_idx + worker_idx * CHUNK_IMAGES;
        while start < total_images {
            let end = (start + CHUNK_IMAGES).min(total_images);
            let chunk: Chunk = (start..end)
                .map(|image_idx| self.image(image_idx))
                .collect();
            let failed = chunk.is_err();
            if chunks.send(chunk).is_err() || failed {
                return;
            }
            start += CHUNK_IMAGES * n_workers.get() as u64;
        }
    }

    fn image(&mut self, image_idx: u64) -> Result<Image> {
        let mut draws = Draws::at(self.options.seed, Stream::Augment, image_idx);
        self.dataset
            .augmented_image(self.order.index_at(image_idx), &mut draws)
    }
}

/// Cuts the stream of images into batches.
fn assemble(
    chunks: &[Receiver<Chunk>],
    options: &LoaderOptions,
    batches: &SyncSender<Result<Batch>>,
) {
    let mut chunks = chunks.iter().cycle().map_while(|chunk| chunk.recv().ok());
    let mut images = chunks.by_ref().flat_map(split_errors);
    let mut start = options.first_image_idx;
    while start < options.total_images {
        let n_images = (options.batch_size.get() as u64).min(options.total_images - start);
        let mut batch = Batch::empty(start);
        for image in images.by_ref().take(n_images as usize) {
            match image {
                Ok(image) => batch.push(image),
                Err(error) => {
                    // Nobody listening means that the run has ended anyway.
                    let _ = batches.send(Err(error));
                    return;
                }
            }
        }
        if batch.n_images() as u64 != n_images || batches.send(Ok(batch)).is_err() {
            return;
        }
        start += n_images;
    }
}

/// The images of a chunk, or its error in their place.
fn split_errors(chunk: Chunk) -> Vec<Result<Image>> {
    match chunk {
        Ok(images) => images.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }
}
