//! Weights against the SNR, as in figure 3 of Choi et al. 2022, as a PNG.

mod canvas;

use std::path::Path;

use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::RgbColor as _;

use super::report::{Report, Row};
use canvas::{Align, Canvas};

/// Okabe and Ito's colors, which color-blind people tell apart, without yellow; black first.
const COLORS: [Rgb888; 7] = [
    Rgb888::new(0, 0, 0),
    Rgb888::new(213, 94, 0),
    Rgb888::new(0, 114, 178),
    Rgb888::new(0, 158, 115),
    Rgb888::new(204, 121, 167),
    Rgb888::new(86, 180, 233),
    Rgb888::new(230, 159, 0),
];
const GREY: Rgb888 = Rgb888::new(120, 120, 120);
const FAINT: Rgb888 = Rgb888::new(222, 222, 222);
/// Bounds in SNR, as powers of ten, name and shade of each stage (Choi et al. 2022, section 3).
const STAGES: [(f64, f64, &str, Rgb888); 3] = [
    (
        f64::NEG_INFINITY,
        -2.0,
        "coarse",
        Rgb888::new(240, 240, 246),
    ),
    (-2.0, 0.0, "content", Rgb888::new(252, 246, 228)),
    (0.0, f64::INFINITY, "clean-up", Rgb888::new(238, 246, 240)),
];

/// Most decades of weights that are drawn: below, a weight is as good as none.
const MAX_DECADES: i32 = 8;

/// Where the axes lie, in pixels, and their ranges, in powers of ten.
#[derive(Debug, Clone, Copy)]
struct Axes {
    snr: [i32; 2],
    weight: [i32; 2],
}

/// How a curve is drawn: each color first in one stroke, then in dashes, ever shorter.
#[derive(Debug, Clone, Copy)]
struct Pen {
    color: Rgb888,
    /// Length of a dash and of the gap after it, in pixels.
    dash: f64,
}

impl Pen {
    fn of(curve: usize) -> Self {
        let round = curve / COLORS.len();
        let dash = match round {
            0 => f64::INFINITY,
            round => 18.0 / round as f64,
        };
        Self {
            color: COLORS[curve % COLORS.len()],
            dash,
        }
    }

    /// The parts of a curve that the pen touches.
    fn dashes(self, points: &[[f64; 2]]) -> Vec<Vec<[f64; 2]>> {
        let mut dashes = Vec::new();
        let mut length = 0.0;
        for pair in points.windows(2) {
            let ([x, y], [next_x, next_y]) = (pair[0], pair[1]);
            let stride = f64::hypot(next_x - x, next_y - y);
            // In steps of at most two pixels, so that a dash may end between two points.
            let n_steps = (stride / 2.0).ceil().max(1.0);
            for i in 0..=n_steps as usize {
                let share = i as f64 / n_steps;
                // Dashes and gaps so far: a dash comes first.
                let n = ((length + share * stride) / self.dash) as usize;
                if n.is_multiple_of(2) {
                    dashes.resize(dashes.len().max(n / 2 + 1), Vec::new());
                    dashes[n / 2].push([x + share * (next_x - x), y + share * (next_y - y)]);
                }
            }
            length += stride;
        }
        dashes
    }
}

const LEFT: f64 = 110.0;
const RIGHT: f64 = 1170.0;
const TOP: f64 = 90.0;
const BOTTOM: f64 = 630.0;

impl Axes {
    /// Ranges of whole decades around all that is shown.
    fn around(reports: &[Report]) -> Self {
        let rows = || reports.iter().flat_map(|report| &report.table);
        let snr = decades(rows().map(|row| row.snr));
        let [low, high] = decades(rows().map(|row| row.normalized));
        Self {
            snr,
            weight: [low.max(high - MAX_DECADES), high],
        }
    }

    fn x(self, log10_snr: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * share(log10_snr, self.snr)
    }

    fn y(self, log10_weight: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * share(log10_weight, self.weight)
    }

    fn point(self, row: &Row) -> [f64; 2] {
        [self.x(row.snr.log10()), self.y(row.normalized.log10())]
    }
}

/// Draws the weight on the eps error of each report in units of its mean.
///
/// # Errors
/// If the file cannot be written.
pub fn save(reports: &[Report], path: &Path) -> anyhow::Result<()> {
    let axes = Axes::around(reports);
    let mut canvas = Canvas::new();
    draw_stages(&mut canvas, axes);
    draw_grid(&mut canvas, axes);
    for (i, report) in reports.iter().enumerate() {
        draw_curve(&mut canvas, axes, report, Pen::of(i));
    }
    canvas.finish_shapes();
    label_axes(&mut canvas, axes);
    draw_legend(&mut canvas, reports);
    canvas.save(path)
}

fn draw_stages(canvas: &mut Canvas, axes: Axes) {
    for (low, high, _, shade) in STAGES {
        let [left, right] = [axes.x(low), axes.x(high)];
        canvas.fill([left, TOP], [right, BOTTOM], shade);
    }
}

fn draw_grid(canvas: &mut Canvas, axes: Axes) {
    for power in axes.weight[0]..=axes.weight[1] {
        let y = axes.y(power.into());
        canvas.line(&[[LEFT, y], [RIGHT, y]], 1.0, FAINT);
    }
    for power in axes.snr[0]..=axes.snr[1] {
        let x = axes.x(power.into());
        canvas.line(&[[x, BOTTOM], [x, BOTTOM + 6.0]], 1.0, GREY);
    }
    // Apart: where lines as long as these meet in one, the second is drawn in part only.
    canvas.line(&[[LEFT, TOP], [LEFT, BOTTOM]], 1.5, GREY);
    canvas.line(&[[LEFT, BOTTOM], [RIGHT, BOTTOM]], 1.5, GREY);
}

/// The part of a curve that lies inside the axes; a level of SNR 0 lies on none.
fn draw_curve(canvas: &mut Canvas, axes: Axes, report: &Report, pen: Pen) {
    let floor = f64::from(axes.weight[0]);
    let inside = |row: &&Row| row.snr > 0.0 && row.normalized.log10() >= floor;
    for piece in report.table.split(|row| !inside(&row)) {
        let points: Vec<[f64; 2]> = piece.iter().map(|row| axes.point(row)).collect();
        for dash in pen.dashes(&points) {
            canvas.line(&dash, 3.0, pen.color);
        }
    }
}

fn label_axes(canvas: &mut Canvas, axes: Axes) {
    for (low, high, name, _) in STAGES {
        let middle = 0.5 * (axes.x(low) + axes.x(high));
        canvas.text(name, [middle, TOP - 10.0], Align::Center, GREY);
    }
    for power in axes.snr[0]..=axes.snr[1] {
        let place = [axes.x(power.into()), BOTTOM + 28.0];
        canvas.text(&decade(power), place, Align::Center, GREY);
    }
    for power in axes.weight[0]..=axes.weight[1] {
        let place = [LEFT - 10.0, axes.y(power.into()) + 6.0];
        canvas.text(&decade(power), place, Align::Right, GREY);
    }
    let middle = 0.5 * (LEFT + RIGHT);
    let title = "weight on the noise error, divided by its mean";
    canvas.text(title, [LEFT, TOP - 50.0], Align::Left, Rgb888::BLACK);
    let axis = "noise  <-  signal-to-noise ratio  ->  image";
    canvas.text(axis, [middle, BOTTOM + 62.0], Align::Center, Rgb888::BLACK);
}

/// Names beside their colors, above the lower left corner, where falling weights leave room.
fn draw_legend(canvas: &mut Canvas, reports: &[Report]) {
    let first = BOTTOM - 20.0 - 24.0 * (reports.len().saturating_sub(1)) as f64;
    for (i, report) in reports.iter().enumerate() {
        let (y, pen) = (first + 24.0 * i as f64, Pen::of(i));
        let sample = (20..=48).map(|x| [LEFT + f64::from(x), y - 5.0]);
        let sample: Vec<[f64; 2]> = sample.collect();
        for dash in pen.dashes(&sample) {
            if let [[left, _], .., [right, _]] = dash.as_slice() {
                canvas.swatch([*left, y - 7.0], [*right, y - 3.0], pen.color);
            }
        }
        canvas.text(&report.spec, [LEFT + 58.0, y], Align::Left, Rgb888::BLACK);
    }
}

/// The decades, as powers of ten, that positive numbers lie in.
fn decades(values: impl Iterator<Item = f64>) -> [i32; 2] {
    let logs = values.filter(|value| *value > 0.0).map(f64::log10);
    let (low, high) = logs.fold((0.0_f64, 0.0_f64), |(low, high), log| {
        (low.min(log), high.max(log))
    });
    [low.floor() as i32, (high.ceil() as i32).max(1)]
}

/// How far between two bounds a number lies, from 0 to 1.
fn share(value: f64, [low, high]: [i32; 2]) -> f64 {
    ((value - f64::from(low)) / f64::from(high - low)).clamp(0.0, 1.0)
}

/// A power of ten, as short as it can be read.
fn decade(power: i32) -> String {
    match power {
        0 => "1".into(),
        1 => "10".into(),
        _ => format!("1e{power}"),
    }
}
