//! A white canvas for lines and letters. Shapes are drawn twice as large and averaged, which smooths their edges.

use std::convert::Infallible;
use std::path::Path;

use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::ascii::FONT_10X20;
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{
    DrawTarget, Drawable as _, OriginDimensions, Pixel, Point, Primitive as _, RgbColor as _, Size,
};
use embedded_graphics::primitives::{Polyline, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Text};

use crate::monitor::grid;

const WIDTH: u32 = 1200;
const HEIGHT: u32 = 720;
/// Pixels of shapes per pixel of the picture, in each direction.
const SCALE: u32 = 2;

/// Which point of a text stands at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Center,
    Right,
}

/// A picture of 1200×720 pixels. Shapes come before letters; places are `[x, y]` from the upper left corner.
pub(super) struct Canvas {
    shapes: Pixels,
    picture: Pixels,
}

impl Canvas {
    pub(super) fn new() -> Self {
        Self {
            shapes: Pixels::white(Size::new(SCALE * WIDTH, SCALE * HEIGHT)),
            picture: Pixels::white(Size::new(WIDTH, HEIGHT)),
        }
    }

    pub(super) fn fill(&mut self, corner: [f64; 2], opposite: [f64; 2], color: Rgb888) {
        fill(&mut self.shapes, [scaled(corner), scaled(opposite)], color);
    }

    pub(super) fn line(&mut self, points: &[[f64; 2]], width: f64, color: Rgb888) {
        let points: Vec<Point> = points.iter().map(|point| scaled(*point)).collect();
        let width = (width * f64::from(SCALE)).round() as u32;
        let style = PrimitiveStyle::with_stroke(color, width);
        let Ok(()) = Polyline::new(&points)
            .into_styled(style)
            .draw(&mut self.shapes);
    }

    /// Averages the shapes into the picture, which letters are then written on.
    pub(super) fn finish_shapes(&mut self) {
        let row = (SCALE * WIDTH) as usize;
        let scale = SCALE as usize;
        for (i, pixel) in self.picture.colors.iter_mut().enumerate() {
            let (y, x) = (i / WIDTH as usize * scale, i % WIDTH as usize * scale);
            let mut sums = [0_u32; 3];
            for j in 0..scale * scale {
                let color = self.shapes.colors[(y + j / scale) * row + x + j % scale];
                for (sum, part) in sums.iter_mut().zip([color.r(), color.g(), color.b()]) {
                    *sum += u32::from(part);
                }
            }
            let [r, g, b] = sums.map(|sum| (sum / (SCALE * SCALE)) as u8);
            *pixel = Rgb888::new(r, g, b);
        }
    }

    /// A bar of color among the letters.
    pub(super) fn swatch(&mut self, corner: [f64; 2], opposite: [f64; 2], color: Rgb888) {
        fill(&mut self.picture, [corner, opposite].map(rounded), color);
    }

    /// Letters whose foot stands at a place.
    pub(super) fn text(&mut self, text: &str, place: [f64; 2], align: Align, color: Rgb888) {
        let alignment = match align {
            Align::Left => Alignment::Left,
            Align::Center => Alignment::Center,
            Align::Right => Alignment::Right,
        };
        let style = MonoTextStyle::new(&FONT_10X20, color);
        let text = Text::with_alignment(text, rounded(place), style, alignment);
        let Ok(_) = text.draw(&mut self.picture);
    }

    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let colors = self.picture.colors.iter();
        let bytes: Vec<u8> = colors.flat_map(|c| [c.r(), c.g(), c.b()]).collect();
        let size = grid::Size {
            height: HEIGHT as usize,
            width: WIDTH as usize,
        };
        grid::save_png(path, size, &bytes)
    }
}

fn fill(pixels: &mut Pixels, [corner, opposite]: [Point; 2], color: Rgb888) {
    let area = Rectangle::with_corners(corner, opposite - Point::new(1, 1));
    let Ok(()) = area
        .into_styled(PrimitiveStyle::with_fill(color))
        .draw(pixels);
}

fn scaled([x, y]: [f64; 2]) -> Point {
    rounded([x * f64::from(SCALE), y * f64::from(SCALE)])
}

fn rounded([x, y]: [f64; 2]) -> Point {
    Point::new(x.round() as i32, y.round() as i32)
}

/// Colors, row by row.
struct Pixels {
    size: Size,
    colors: Vec<Rgb888>,
}

impl Pixels {
    fn white(size: Size) -> Self {
        let n = size.width as usize * size.height as usize;
        Self {
            size,
            colors: vec![Rgb888::WHITE; n],
        }
    }
}

impl OriginDimensions for Pixels {
    fn size(&self) -> Size {
        self.size
    }
}

impl DrawTarget for Pixels {
    type Color = Rgb888;
    type Error = Infallible;

    /// What lies outside is left out.
    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<Rgb888>>,
    {
        for Pixel(place, color) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(place.x), u32::try_from(place.y)) else {
                continue;
            };
            if x < self.size.width && y < self.size.height {
                self.colors[(y * self.size.width + x) as usize] = color;
            }
        }
        Ok(())
    }
}
