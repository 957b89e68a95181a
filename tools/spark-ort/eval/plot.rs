//! Plots of a measurement: error against the share of pruned channels (the paper's Fig. 3a) and against bytes (Fig.
//! 3b), and speed against bytes.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use plotters::coord::Shift;
use plotters::prelude::*;
use spark_ort::eval::Task;

use super::candidate::Kind;
use super::report::{Report, Row};

/// Pixels of one plot.
const SIZE: (u32, u32) = (620, 440);
/// Below any meaningful divergence; a logarithmic axis needs a positive value.
const LEAST: f64 = 1e-6;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Refuses a file to which no plot can be written, before anything is measured.
pub fn check(path: &Path) -> Result<()> {
    if path.extension().and_then(OsStr::to_str) != Some("svg") {
        bail!("{} is no .svg file: pictures are written as SVG only", path.display());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match folder.is_dir() {
        true => Ok(()),
        false => bail!("--plot {}: there is no folder {}", path.display(), folder.display()),
    }
}

/// Writes the plots of `report` to one file: a row of three for each prompt length and task.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    let groups = report.groups();
    let mut text = String::new();
    {
        let lines = groups.len().max(1) as u32;
        let root = SVGBackend::with_string(&mut text, (3 * SIZE.0, lines * SIZE.1)).into_drawing_area();
        let drawn = root.fill(&WHITE).map_err(|e| anyhow!("{e}"));
        drawn.and_then(|()| draw(&root, &groups)).context("the pictures cannot be drawn")?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn draw(root: &Area<'_>, groups: &[(usize, Option<Task>, Vec<&Row>)]) -> Result<()> {
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
    root.present().map_err(|e| anyhow!("{e}"))
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
fn picture(area: &Area<'_>, title: &str, [x, y]: [&str; 2], logarithmic: bool, points: &[Point]) -> Result<()> {
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
