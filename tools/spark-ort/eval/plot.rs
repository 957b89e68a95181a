//! Plots of a measurement: error against the share of pruned channels (the paper's Fig. 3a) and against bytes (Fig.
//! 3b), and speed against bytes.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use spark_ort::eval::Task;

use super::candidate::Kind;
use super::report::{Report, Row};
use crate::whole_file;

/// Pixels of one plot.
const SIZE: (u32, u32) = (620, 440);
/// Below any meaningful divergence; a logarithmic axis needs a positive value.
const LEAST: f64 = 1e-6;

/// The formats of a picture.
enum Format {
    Svg,
    Png,
}

impl Format {
    /// The format that the name of `path` asks for.
    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => bail!("--plot {}: pictures are .svg or .png files", path.display()),
        }
    }
}

/// Refuses a file whose name is not that of a plot, before anything is measured.
pub fn check(path: &Path) -> Result<()> {
    Format::of(path).map(drop)
}

/// Writes the plots of `report` to one file: a row of three for each prompt length and task.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    let groups = report.groups();
    let size = (3 * SIZE.0, groups.len().max(1) as u32 * SIZE.1);
    load_font()?;
    let bytes = match Format::of(path)? {
        Format::Svg => {
            let mut text = String::new();
            draw(SVGBackend::with_string(&mut text, size), &groups)?;
            text.into_bytes()
        }
        Format::Png => {
            let mut pixels = vec![0; 3 * size.0 as usize * size.1 as usize];
            draw(BitMapBackend::with_buffer(&mut pixels, size), &groups)?;
            png_file(&pixels, size).context("the picture cannot be encoded as PNG")?
        }
    };
    whole_file::write(path, &bytes)
}

/// Letters for both formats: a PNG needs their shapes, an SVG their widths.
fn load_font() -> Result<()> {
    register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| anyhow!("the font of the pictures is invalid"))
}

/// A PNG file of `pixels`, three bytes each (red, green, blue), `size.0` columns and `size.1` rows.
fn png_file(pixels: &[u8], size: (u32, u32)) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size.0, size.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}

/// Draws the plots of `groups` on `backend`.
fn draw<B: DrawingBackend>(backend: B, groups: &[(usize, Option<Task>, Vec<&Row>)]) -> Result<()>
where
    B::ErrorType: 'static,
{
    let root = backend.into_drawing_area();
    root.fill(&WHITE).context("the pictures cannot be drawn")?;
    for (line, (context, task, rows)) in root.split_evenly((groups.len().max(1), 1)).iter().zip(groups) {
        let of = format!("prompts of {context} tokens{}", task.map_or(String::new(), |task| format!(", {task}")));
        let error = |row: &Row| {
            let divergence = &row.summary.divergence;
            [divergence.value, divergence.low, divergence.high].map(|x| x.max(LEAST))
        };
        let compared = || rows.iter().filter(|row| row.described.kind != Kind::Original);
        let share = compared().filter_map(|row| Some(Point::new(row, row.described.ratio?, error(row))));
        let bytes = compared().map(|row| Point::new(row, row.described.bytes_per_token, error(row)));
        // The speed of a simulation is meaningless.
        let timed = rows.iter().filter(|row| row.described.kind != Kind::Simulated);
        let speed = timed.filter_map(|row| {
            let timing = &row.timing;
            let rate = (timing.decoded_tokens > 0).then(|| timing.decoded_tokens as f64 / timing.decode_seconds)?;
            Some(Point::new(row, row.described.bytes_per_token, [rate; 3]))
        });
        let pictures = line.split_evenly((1, 3));
        let divergence = "KL divergence from the original, nats";
        picture(&pictures[0], &of, ["pruned key channels, share", divergence], true, &share.collect::<Vec<_>>())?;
        picture(&pictures[1], &of, ["cache, bytes per token", divergence], true, &bytes.collect::<Vec<_>>())?;
        picture(&pictures[2], &of, ["cache, bytes per token", "decode, tokens/s"], false, &speed.collect::<Vec<_>>())?;
    }
    root.present().context("the pictures cannot be drawn")
}

/// A point of a plot: its position, and the ends of its interval.
struct Point {
    name: String,
    kind: Kind,
    x: f64,
    y: [f64; 3],
}

impl Point {
    fn new(row: &Row, x: f64, y: [f64; 3]) -> Self {
        Self { name: row.described.name.clone(), kind: row.described.kind, x, y }
    }

    fn color(&self) -> RGBColor {
        match self.kind {
            Kind::Original => BLACK,
            Kind::Rewritten => RGBColor(200, 60, 20),
            Kind::Simulated => RGBColor(120, 120, 120),
            Kind::OnnxRuntime => RGBColor(30, 90, 180),
        }
    }
}

/// A plot of `points` with their names; empty if there are no points.
fn picture<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    [x, y]: [&str; 2],
    logarithmic: bool,
    points: &[Point],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let Some(across) = around(points.iter().map(|p| p.x)) else { return Ok(()) };
    let across = across.start.min(0.0)..across.end + 0.15 * (across.end - across.start);
    let ends = points.iter().flat_map(|p| p.y);
    let (least, most) = ends.fold((f64::INFINITY, 0.0), |(a, b): (f64, f64), y| (a.min(y), b.max(y)));
    let mut builder = ChartBuilder::on(area);
    builder.caption(title, ("sans-serif", 16)).margin(10).x_label_area_size(40).y_label_area_size(60);
    macro_rules! chart {
        ($range:expr) => {{
            let mut chart = builder.build_cartesian_2d(across, $range).map_err(|e| anyhow!("{e}"))?;
            let mesh = chart.configure_mesh().x_desc(x).y_desc(y).light_line_style(WHITE).draw();
            mesh.map_err(|e| anyhow!("{e}"))?;
            for point in points {
                let (color, [value, low, high]) = (point.color(), point.y);
                let interval = PathElement::new(vec![(point.x, low), (point.x, high)], color);
                chart.draw_series([interval]).map_err(|e| anyhow!("{e}"))?;
                let mark = Circle::new((point.x, value), 4, color.filled());
                chart.draw_series([mark]).map_err(|e| anyhow!("{e}"))?;
                let label = EmptyElement::at((point.x, value))
                    + Text::new(point.name.clone(), (7, -6), ("sans-serif", 12).into_font().color(&color));
                chart.draw_series([label]).map_err(|e| anyhow!("{e}"))?;
            }
        }};
    }
    match logarithmic {
        true => chart!((least / 1.5..most * 1.5).log_scale()),
        false => chart!(0.0..most * 1.15),
    }
    Ok(())
}

/// The range of `values`, never empty; `None` without any.
fn around(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    let range = values.fold(None, |range: Option<Range<f64>>, x| {
        let range = range.unwrap_or(x..x);
        Some(range.start.min(x)..range.end.max(x))
    })?;
    Some(if range.start < range.end { range } else { range.start..range.end + 1.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_png_shows_letters_and_points() {
        load_font().unwrap();
        let size = (300, 200);
        let mut pixels = vec![255; 3 * 300 * 200];
        {
            let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
            let points = [Point { name: "0.5/8/8".into(), kind: Kind::Rewritten, x: 1.0, y: [0.1, 0.05, 0.2] }];
            picture(&area, "title", ["bytes", "nats"], true, &points).unwrap();
            area.present().unwrap();
        }
        let file = png_file(&pixels, size).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(&file)).read_info().unwrap();
        let mut read = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut read).unwrap();
        assert!(read == pixels);
        let dark =
            |rows: Range<usize>| read[rows.start * 900..rows.end * 900].iter().filter(|&&byte| byte < 128).count();
        assert!(dark(5..30) > 20, "the title");
        let mark = read.chunks(3).filter(|pixel| *pixel == [200, 60, 20]).count();
        assert!(mark > 20, "the point");
    }
}
