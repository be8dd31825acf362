//! Seconds per image over workers, as a picture.

use super::Row;
use super::figures::Settled;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, IntoDrawingArea, IntoLogRange, LineSeries, PathElement,
    RGBColor, SVGBackend, SeriesLabelPosition, WHITE,
};

/// Width and height in pixels.
const SIZE: (u32, u32) = (900, 520);
const FONT: &str = "sans-serif";
/// Colours that stand out from white and from black, also to the colour-blind.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 130, 200),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(200, 140, 0),
    RGBColor(120, 120, 220),
];
/// What the picture's black and white are where the reader's screen is dark.
const DARK: &str = "<style>@media (prefers-color-scheme: dark) {\
    [fill=\"#FFFFFF\"] { fill: #0d1117 } [fill=\"#000000\"], text { fill: #e6edf3 } \
    [stroke=\"#000000\"] { stroke: #8b949e } [stroke=\"#FFFFFF\"] { stroke: #0d1117 } }</style>\n";

/// A chart as SVG: a line for each size.
///
/// # Errors
/// What the drawing library says, which a picture in memory gives it no reason to.
pub(super) fn draw(settled: &Settled, rows: &[Row]) -> Result<String, String> {
    let mut svg = String::new();
    try_draw(&mut svg, settled, rows).map_err(|error| error.to_string())?;
    // Behind the opening tag.
    let at = svg.find("xmlns").and_then(|tag| svg[tag..].find('>').map(|end| tag + end + 1));
    svg.insert_str(at.ok_or("the drawing library wrote no SVG")?, DARK);
    Ok(svg)
}

/// Workers and seconds.
type Points = Vec<(f64, f64)>;

#[expect(clippy::cast_precision_loss, reason = "at most 64 workers")]
fn points(rows: &[Row], size: super::Size) -> Points {
    let of_size = rows.iter().filter(|row| row.size == size);
    let point = |row: &Row| {
        let seconds = row.mesh.as_ref().ok()?.prediction.image_seconds;
        Some((row.workers as f64, seconds))
    };
    of_size.filter_map(point).collect()
}

fn try_draw(
    svg: &mut String,
    settled: &Settled,
    rows: &[Row],
) -> Result<(), Box<dyn std::error::Error>> {
    let series: Vec<(String, Points)> =
        settled.sizes.0.iter().map(|size| (size.to_string(), points(rows, *size))).collect();
    let all = || series.iter().flat_map(|(_, points)| points);
    let last = all().map(|(workers, _)| *workers).fold(2.0, f64::max);
    let lowest = all().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
    let highest = all().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    let (lowest, highest) = if highest > 0.0 { (lowest / 1.3, highest * 1.3) } else { (0.1, 1.0) };
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{}, {} steps, predicted", settled.card.name, settled.steps);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 16))
        .margin(10)
        .x_label_area_size(38)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (1.0..last * 1.05).log_scale().base(2.0),
            (lowest..highest).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("workers")
        .y_desc("seconds per image")
        .light_line_style(WHITE)
        .label_style((FONT, 12))
        .x_label_formatter(&|workers| format!("{workers:.0}"))
        .y_label_formatter(&|seconds| format!("{seconds}"))
        .draw()?;
    for ((name, points), colour) in series.into_iter().zip(COLOURS.into_iter().cycle()) {
        chart.draw_series(points.iter().map(|at| Circle::new(*at, 3, colour.filled())))?;
        let line = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        line.label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .label_font((FONT, 13))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::figures::Figures;
    use super::super::predict;
    use super::*;

    #[test]
    fn a_chart_has_a_line_for_each_size_and_another_ground_in_the_dark() {
        let settled = Figures::default().settle().unwrap();
        let rows = predict(&settled).unwrap();
        let svg = draw(&settled, &rows).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for part in ["1024x1024", "4096x4096", "workers", "seconds per image", "prefers-color"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        // Four numbers of workers, three sizes.
        assert_eq!(svg.matches("<circle").count(), 12);
        assert!(svg.contains("fill=\"#FFFFFF\""), "the ground that the dark replaces");
        assert!(draw(&settled, &[]).unwrap().contains("</svg>"), "nothing is an empty chart");
    }
}
