//! Distances as a picture: by call, and by exchange point.

use super::sites::{Kind, SiteSummary};
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, LineSeries, PathElement,
    RGBColor, SVGBackend, SeriesLabelPosition, WHITE,
};
use std::ops::Range;

/// Width and height in pixels.
const SIZE: (u32, u32) = (900, 640);
const FONT: &str = "sans-serif";

/// A chart as SVG: above, the mean distance of each kind by call; below, each site's over the calls
/// that `count`, in the model's order.
///
/// # Errors
/// What the drawing library says, which a picture in memory gives it no reason to.
pub fn draw(
    title: &str,
    sites: &[SiteSummary],
    count: impl Fn(usize) -> bool,
) -> Result<String, String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| error.to_string())?;
        let (above, below) = root.split_vertically(SIZE.1 / 2);
        let by_call = Kind::ALL.map(|kind| (kind, means_by_call(sites, kind)));
        let means = sites.iter().zip(0_u32..).map(|(site, at)| (site.kind, at, site.mean(&count)));
        let means: Vec<_> = means.collect();
        let by_site = Kind::ALL.map(|kind| {
            let of_kind = means.iter().filter(|(of, ..)| *of == kind);
            (kind, of_kind.map(|(_, at, mean)| (*at, *mean)).collect::<Vec<_>>())
        });
        let panel = Panel { title, axis: "model call", lines: true };
        panel.draw(&above, &by_call)?;
        let title =
            "the same at each exchange point: mean over displaced calls, or if there is none, all";
        let panel = Panel { title, axis: "exchange points, in the model's order", lines: false };
        panel.draw(&below, &by_site)?;
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(svg)
}

/// Points (x, distance) of one kind.
type Points = Vec<(u32, f64)>;

#[expect(clippy::cast_precision_loss, reason = "a few hundred sites")]
fn means_by_call(sites: &[SiteSummary], kind: Kind) -> Points {
    let of_kind: Vec<&SiteSummary> = sites.iter().filter(|site| site.kind == kind).collect();
    let calls = of_kind.iter().map(|site| site.distances.len()).min().unwrap_or(0);
    let mean = |call: usize| {
        of_kind.iter().map(|site| site.distances[call]).sum::<f64>() / of_kind.len() as f64
    };
    (1..).zip((0..calls).map(mean)).collect()
}

struct Panel<'a> {
    title: &'a str,
    axis: &'a str,
    lines: bool,
}

impl Panel<'_> {
    fn draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        series: &[(Kind, Points)],
    ) -> Result<(), String> {
        self.try_draw(area, series).map_err(|error| error.to_string())
    }

    fn try_draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        series: &[(Kind, Points)],
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (x, y) = ranges(series);
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, (FONT, 15))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(52)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(self.axis)
            .y_desc("relative L2 distance")
            .light_line_style(WHITE)
            .label_style((FONT, 12))
            .draw()?;
        for (kind, points) in series.iter().filter(|(_, points)| !points.is_empty()) {
            let colour = colour(*kind);
            let drawn = if self.lines {
                chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            } else {
                chart.draw_series(points.iter().map(|at| Circle::new(*at, 3, colour.filled())))?
            };
            drawn.label(kind.name()).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(3))
            });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(BLACK)
            .label_font((FONT, 12))
            .draw()?;
        Ok(())
    }
}

fn ranges(series: &[(Kind, Points)]) -> (Range<u32>, Range<f64>) {
    let points = || series.iter().flat_map(|(_, points)| points);
    let last = points().map(|(x, _)| *x).max().unwrap_or(1);
    let highest = points().map(|(_, y)| *y).fold(1e-3, f64::max);
    (0..last + 1, 0.0..highest * 1.05)
}

fn colour(kind: Kind) -> RGBColor {
    match kind {
        Kind::Conv => RGBColor(0, 114, 178),
        Kind::Attention => RGBColor(213, 94, 0),
        Kind::Norm => RGBColor(0, 158, 115),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_line_and_points_for_each_kind_that_is_there() {
        let site = |path: &str, kind| SiteSummary {
            path: path.to_owned(),
            kind,
            halvings: 0,
            bytes: 1.0,
            distances: vec![0.5, 0.25, 0.125],
        };
        let sites = [site("a", Kind::Conv), site("b", Kind::Attention)];
        let svg = draw("emoji", &sites, |call| call > 1).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for part in ["emoji", "conv", "attention", "model call", "relative L2 distance"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert!(!svg.contains("norm"));
        // One point of each of two sites.
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn nothing_measured_is_an_empty_chart() {
        assert!(draw("nothing", &[], |_| true).unwrap().contains("nothing"));
    }
}
