//! The picture of the results, without words: [`LEGEND`] says what its panels are.

use std::path::Path;

use candle_core::{Device, Tensor};
use p2::monitor::grid::{Images, Size};
use p2::rng::{Draws, Stream};
use p2_diffusion::{NoiseSchedule, Stage};

use crate::mixture::{EXTENT, Mixture};
use crate::{JUDGE_SEED, LevelErrors, network, points};

/// What the panels are, for those who see the picture.
pub(crate) const LEGEND: &str = "\
above:  the data | samples of simple (orange) | samples of P2 (blue), over the data in gray;
        dots beside the beads are strays
middle: excess error (logarithmic, a line per power of ten) from clean to noisy levels,
        simple orange, P2 blue; the ground changes where clean-up becomes content, then coarse
below:  the data as the networks see it at these levels
";

const WIDTH: usize = 960;
/// Side of the panels above, in pixels.
const PANEL: usize = WIDTH / 3;
const CHART_HEIGHT: usize = 280;
/// Side of the panels below, in pixels.
const THUMBNAIL: usize = 120;
const N_THUMBNAIL_POINTS: usize = 700;
/// Distance of drawings from the border of their panel, in pixels.
const MARGIN: f64 = 12.0;
/// Powers of ten that the chart shows.
const DECADES: [i32; 2] = [-5, 0];

type Color = [f64; 3];

const GROUND: Color = [0.05, 0.06, 0.10];
const STAGE_GROUNDS: [Color; 3] = [[0.07, 0.09, 0.14], [0.12, 0.14, 0.20], [0.07, 0.09, 0.14]];
const GRID: Color = [0.25, 0.28, 0.36];
const DATA: Color = [0.93, 0.92, 0.86];
/// Of simple and P2.
const NETWORKS: [Color; 2] = [[1.0, 0.60, 0.20], [0.35, 0.75, 1.0]];

/// Draws everything and writes it as a PNG.
pub(crate) fn save(
    path: &Path,
    data: &Mixture,
    schedule: &NoiseSchedule,
    samples: &[Vec<[f64; 2]>; 2],
    levels: &[LevelErrors],
) -> anyhow::Result<()> {
    let mut canvas = Canvas::new(PANEL + CHART_HEIGHT + THUMBNAIL);
    draw_density(
        &mut canvas,
        data,
        Panel {
            x: 0,
            y: 0,
            side: PANEL,
        },
        1.0,
    );
    for (i, (samples, color)) in samples.iter().zip(NETWORKS).enumerate() {
        let panel = Panel {
            x: (i + 1) * PANEL,
            y: 0,
            side: PANEL,
        };
        draw_density(&mut canvas, data, panel, 0.3);
        canvas.frame(panel, color);
        for &sample in samples {
            canvas.disc(panel.place(sample, EXTENT), 1.3, color, 0.75);
        }
    }
    draw_chart(&mut canvas, schedule, levels);
    draw_thumbnails(&mut canvas, data, schedule, levels)?;
    canvas.save(path)
}

/// The data, as bright as it is dense.
fn draw_density(canvas: &mut Canvas, data: &Mixture, panel: Panel, brightness: f64) {
    for y in panel.y..panel.y + panel.side {
        for x in panel.x..panel.x + panel.side {
            let density = data.relative_density(panel.point([x, y], EXTENT));
            canvas.blend([x, y], DATA, brightness * density.sqrt());
        }
    }
    canvas.frame(panel, GRID);
}

/// Excess errors over log-SNR, from clean on the left to noisy on the right.
fn draw_chart(canvas: &mut Canvas, schedule: &NoiseSchedule, levels: &[LevelErrors]) {
    let column = |log_snr: f64| column(schedule, log_snr);
    let row = |error: f64| {
        let [low, high] = DECADES.map(f64::from);
        let share = ((high - error.log10()) / (high - low)).clamp(0.0, 1.0);
        PANEL as f64 + MARGIN + share * (CHART_HEIGHT as f64 - 2.0 * MARGIN)
    };
    let borders = Stage::ALL.map(|stage| {
        let timesteps = stage.timesteps(schedule);
        column(schedule.log_snr()[timesteps.start as usize])
    });
    for y in PANEL..PANEL + CHART_HEIGHT {
        for x in 0..WIDTH {
            let stage = borders
                .iter()
                .rposition(|&border| x as f64 >= border)
                .unwrap_or(0);
            canvas.blend([x, y], STAGE_GROUNDS[stage], 1.0);
        }
    }
    for decade in DECADES[0]..=DECADES[1] {
        let y = row(10f64.powi(decade));
        canvas.line([[MARGIN, y], [WIDTH as f64 - MARGIN, y]], 0.5, GRID);
    }
    for (i, color) in NETWORKS.into_iter().enumerate() {
        let curve: Vec<[f64; 2]> = levels
            .iter()
            .map(|level| [column(level.log_snr), row(level.excess[i])])
            .collect();
        for ends in curve.windows(2) {
            canvas.line([ends[0], ends[1]], 1.5, color);
        }
    }
}

/// Noised data, each panel under its place in the chart.
fn draw_thumbnails(
    canvas: &mut Canvas,
    data: &Mixture,
    schedule: &NoiseSchedule,
    levels: &[LevelErrors],
) -> anyhow::Result<()> {
    let n = N_THUMBNAIL_POINTS;
    for x in (0..WIDTH).step_by(THUMBNAIL) {
        let panel = Panel {
            x,
            y: PANEL + CHART_HEIGHT,
            side: THUMBNAIL,
        };
        let middle = (x + THUMBNAIL / 2) as f64;
        let distance = |level: &&LevelErrors| (column(schedule, level.log_snr) - middle).abs();
        let Some(level) = levels
            .iter()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        else {
            continue;
        };
        let x0 = data.points(n, &mut Draws::at(JUDGE_SEED, Stream::Shuffle, 0));
        let x0 = Tensor::from_vec(x0, (n, 2), &Device::Cpu)?;
        let eps = network::normal(n, &mut Draws::at(JUDGE_SEED, Stream::Augment, 0))?;
        let x_t = schedule.add_noise(&x0, &eps, &vec![level.t; n])?; // [N, 2]
        // Signal and noise shrink and grow; the window follows.
        let alpha_bar = schedule.alpha_bar()[level.t as usize];
        let extent = (alpha_bar * EXTENT.powi(2) + 9.0 * (1.0 - alpha_bar)).sqrt();
        let inside = |point: &[f64; 2]| point.iter().all(|x| x.abs() < 0.95 * extent);
        for point in points(&x_t)?.into_iter().filter(inside) {
            canvas.disc(panel.place(point, extent), 0.9, DATA, 0.5);
        }
    }
    Ok(())
}

/// Where in the chart a noise level stands.
fn column(schedule: &NoiseSchedule, log_snr: f64) -> f64 {
    let (first, last) = (schedule.log_snr().first(), schedule.log_snr().last());
    let [cleanest, noisiest] = [first, last].map(|level| level.copied().unwrap_or(0.0));
    let share = (cleanest - log_snr) / (cleanest - noisiest);
    MARGIN + share * (WIDTH as f64 - 2.0 * MARGIN)
}

/// A square of the canvas that shows the plane around 0, in pixels.
#[derive(Debug, Clone, Copy)]
struct Panel {
    x: usize,
    y: usize,
    side: usize,
}

impl Panel {
    /// Where a point of the plane is drawn, if the panel reaches from `-extent` to `extent`.
    fn place(self, [x, y]: [f64; 2], extent: f64) -> [f64; 2] {
        let half = self.side as f64 / 2.0;
        [
            self.x as f64 + half * (1.0 + x / extent),
            self.y as f64 + half * (1.0 - y / extent),
        ]
    }

    /// The point of the plane in the middle of a pixel.
    fn point(self, [x, y]: [usize; 2], extent: f64) -> [f64; 2] {
        let half = self.side as f64 / 2.0;
        let offset = |pixel: usize, start: usize| (pixel - start) as f64 + 0.5 - half;
        [
            offset(x, self.x) / half * extent,
            -offset(y, self.y) / half * extent,
        ]
    }
}

/// Colors in `[0, 1]`, row by row.
struct Canvas {
    height: usize,
    pixels: Vec<Color>, // [H, W]
}

impl Canvas {
    fn new(height: usize) -> Self {
        Self {
            height,
            pixels: vec![GROUND; height * WIDTH],
        }
    }

    /// Covers a pixel with a color; pixels outside are left out.
    fn blend(&mut self, [x, y]: [usize; 2], color: Color, opacity: f64) {
        if x >= WIDTH {
            return;
        }
        if let Some(pixel) = self.pixels.get_mut(y * WIDTH + x) {
            for (below, above) in pixel.iter_mut().zip(color) {
                *below += (above - *below) * opacity;
            }
        }
    }

    fn disc(&mut self, center: [f64; 2], radius: f64, color: Color, opacity: f64) {
        self.stroke([center, center], radius, color, opacity);
    }

    fn line(&mut self, ends: [[f64; 2]; 2], radius: f64, color: Color) {
        self.stroke(ends, radius, color, 1.0);
    }

    /// All that is at most `radius` from the line between two points, with soft borders.
    fn stroke(&mut self, [a, b]: [[f64; 2]; 2], radius: f64, color: Color, opacity: f64) {
        let range = |i: usize, end: usize| {
            let first = (a[i].min(b[i]) - radius - 1.0).max(0.0) as usize;
            let last = (a[i].max(b[i]) + radius + 1.0).max(0.0) as usize;
            first..last.min(end)
        };
        for y in range(1, self.height) {
            for x in range(0, WIDTH) {
                let distance = distance([x as f64 + 0.5, y as f64 + 0.5], [a, b]);
                let cover = (radius + 0.5 - distance).clamp(0.0, 1.0);
                self.blend([x, y], color, cover * opacity);
            }
        }
    }

    fn frame(&mut self, panel: Panel, color: Color) {
        for i in 4..panel.side - 4 {
            for near in [4, panel.side - 5] {
                self.blend([panel.x + i, panel.y + near], color, 0.8);
                self.blend([panel.x + near, panel.y + i], color, 0.8);
            }
        }
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let values: Vec<f32> = self
            .pixels
            .as_flattened()
            .iter()
            .map(|&x| (2.0 * x - 1.0) as f32)
            .collect();
        Images::new(
            Size {
                height: self.height,
                width: WIDTH,
            },
            &values,
        )?
        .save_one(0, path)
    }
}

/// The distance of a point from the line between two others.
fn distance(point: [f64; 2], [a, b]: [[f64; 2]; 2]) -> f64 {
    let (along, to) = (
        [b[0] - a[0], b[1] - a[1]],
        [point[0] - a[0], point[1] - a[1]],
    );
    let square = along[0].powi(2) + along[1].powi(2);
    let share = if square == 0.0 {
        0.0
    } else {
        ((to[0] * along[0] + to[1] * along[1]) / square).clamp(0.0, 1.0)
    };
    (to[0] - share * along[0]).hypot(to[1] - share * along[1])
}
