//! Plots as SVG text whose colours are CSS classes.
//!
//! A plotting crate writes colours into the picture; then a page can have light plots or dark ones. Here every element
//! has a class and the page's style sheet gives it a colour for either (`prefers-color-scheme`), which needs no more than
//! scales, ticks and labels that keep out of each other's way.

use std::fmt::Write;

/// Width of all plots, in pixels at their natural size.
const WIDTH: f64 = 760.0;
/// Room for numbers on the left and names on the right.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Names stay this far apart.
const LINE: f64 = 15.0;
/// Colours there are; further series share the last, a grey.
pub const COLOURS: usize = 8;

/// A line of a [`lines`] plot.
pub struct Series {
    /// What it is called at its end.
    pub name: String,
    /// x and y, both above 0, x rising.
    pub points: Vec<(f64, f64)>,
}

/// Text as it may stand in XML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A number short enough for an axis: 12, 3.4k, 5M.
pub fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = if scaled.abs() >= 100.0 || scaled.fract().abs() < 1e-9 {
        format!("{scaled:.0}")
    } else {
        let digits = if scaled.abs() < 1.0 { 2 } else { 1 };
        format!("{scaled:.digits$}")
    };
    text + unit
}

/// A logarithmic scale from values to pixels.
struct Log {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Log {
    fn at(&self, value: f64) -> f64 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + part * (self.to - self.from)
    }
}

/// Ticks for a logarithmic axis: powers of ten, with 2 and 5 between them where there are few.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let steps: &[f64] = match (high / low).log10() {
        span if span < 0.8 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
        span if span < 2.5 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let first = low.log10().floor() as i32;
    let all = (first..=first + 20).flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e)));
    all.filter(|t| *t >= low * 0.999 && *t <= high * 1.001)
        .collect()
}

/// Moves `wanted` places apart, keeping their order, within `low` to `high`.
fn spread(wanted: &[f64], low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut places = wanted.to_vec();
    let mut least = low;
    for &i in &order {
        places[i] = places[i].max(least);
        least = places[i] + LINE;
    }
    let mut most = high;
    for &i in order.iter().rev() {
        places[i] = places[i].min(most);
        most = places[i] - LINE;
    }
    places
}

fn open(height: f64, title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">\n",
        escape(title)
    )
}

/// Lines over a logarithmic x and a logarithmic y. `x_title` and `y_title` name the axes with their units.
pub fn lines(title: &str, x_title: &str, y_title: &str, series: &[Series]) -> String {
    let height = 380.0;
    let all = || series.iter().flat_map(|s| &s.points);
    let bounds = |pick: fn(&(f64, f64)) -> f64| {
        all()
            .map(pick)
            .fold((f64::MAX, f64::MIN_POSITIVE), |(l, h), v| {
                (l.min(v), h.max(v))
            })
    };
    let ((x_low, x_high), (y_low, y_high)) = (bounds(|p| p.0), bounds(|p| p.1));
    let x = Log {
        low: x_low * 0.92,
        high: x_high.max(x_low * 1.01) * 1.06,
        from: LEFT,
        to: WIDTH - RIGHT,
    };
    let y = Log {
        low: y_low * 0.8,
        high: y_high * 1.25,
        from: height - BOTTOM,
        to: TOP,
    };
    let mut svg = open(height, title);
    for tick in decades(y.low, y.high) {
        let at = y.at(tick);
        // Writing to a String does not fail.
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            x.to
        );
        let _ = writeln!(
            svg,
            "<text class=\"tick end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            short(tick)
        );
    }
    let mut counts: Vec<f64> = all().map(|p| p.0).collect();
    counts.sort_by(f64::total_cmp);
    counts.dedup();
    let mut free = f64::MIN;
    for count in counts {
        let at = x.at(count);
        let _ = writeln!(
            svg,
            "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{0:.1}\" y2=\"{1:.1}\"/>",
            y.from,
            y.from + 4.0
        );
        if at > free {
            let _ = writeln!(
                svg,
                "<text class=\"tick mid\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
                y.from + 18.0,
                short(count)
            );
            free = at + 20.0;
        }
    }
    let _ = writeln!(
        svg,
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/>",
        x.to, y.from
    );
    let _ = writeln!(
        svg,
        "<text class=\"name mid\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        (x.from + x.to) / 2.0,
        height - 6.0,
        escape(x_title)
    );
    let middle = (y.from + y.to) / 2.0;
    let _ = writeln!(
        svg,
        "<text class=\"name mid\" transform=\"translate(14 {middle:.1}) rotate(-90)\">{}</text>",
        escape(y_title)
    );
    let ends: Vec<f64> = series
        .iter()
        .map(|s| s.points.last().map_or(0.0, |p| y.at(p.1)))
        .collect();
    let places = spread(&ends, TOP + 4.0, y.from);
    for (i, s) in series.iter().enumerate() {
        one_line(&mut svg, (&x, &y), s, i, (ends[i], places[i]));
    }
    svg + "</svg>\n"
}

/// A line, its points, and its name at `place`, joined with its end at `end`.
fn one_line(
    svg: &mut String,
    (x, y): (&Log, &Log),
    s: &Series,
    index: usize,
    (end, place): (f64, f64),
) {
    let colour = index.min(COLOURS);
    let path: Vec<String> = s
        .points
        .iter()
        .map(|p| format!("{:.1},{:.1}", x.at(p.0), y.at(p.1)))
        .collect();
    let _ = writeln!(
        svg,
        "<polyline class=\"line s{colour}\" points=\"{}\"/>",
        path.join(" ")
    );
    for (cpus, value) in &s.points {
        let tip = format!("{}, {}: {:.1}", s.name, short(*cpus), value);
        let _ = writeln!(
            svg,
            "<circle class=\"dot f{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{}</title></circle>",
            x.at(*cpus),
            y.at(*value),
            escape(&tip)
        );
    }
    let last = s.points.last().map_or(x.to, |p| x.at(p.0));
    let _ = writeln!(
        svg,
        "<polyline class=\"lead s{colour}\" points=\"{:.1},{end:.1} {:.1},{place:.1} {:.1},{place:.1}\"/>",
        last + 6.0,
        x.to + 12.0,
        x.to + 20.0
    );
    let _ = writeln!(
        svg,
        "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        x.to + 24.0,
        place + 4.0,
        escape(&s.name)
    );
}

/// One bar of a [`bars`] plot.
pub struct Bar {
    /// On its left.
    pub name: String,
    /// Lengths by series.
    pub parts: Vec<f64>,
}

/// Horizontal bars of stacked parts with a legend of `names`; there may be none for bars of one part, and empty ones for
/// colours not in use.
pub fn bars(title: &str, x_title: &str, names: &[String], rows: &[Bar]) -> String {
    let (row_height, left) = (26.0, 190.0);
    let legend = legend_rows(names);
    let top = TOP + legend as f64 * 20.0 + if legend > 0 { 8.0 } else { 0.0 };
    let height = top + rows.len() as f64 * row_height + BOTTOM;
    let most = rows
        .iter()
        .map(|r| r.parts.iter().sum::<f64>())
        .fold(f64::MIN_POSITIVE, f64::max);
    let to = WIDTH - 76.0;
    let at = |value: f64| left + value / most * (to - left);
    let mut svg = open(height, title);
    legend_items(&mut svg, names);
    let floor = top + rows.len() as f64 * row_height;
    for tick in linear(most) {
        let x = at(tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{floor:.1}\"/>"
        );
        let _ = writeln!(
            svg,
            "<text class=\"tick mid\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
            floor + 16.0,
            short(tick)
        );
    }
    for (i, row) in rows.iter().enumerate() {
        let y = top + i as f64 * row_height;
        let _ = writeln!(
            svg,
            "<text class=\"label end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 8.0,
            y + 17.0,
            escape(&row.name)
        );
        let mut from = 0.0;
        for (part, value) in row.parts.iter().enumerate().filter(|(_, v)| **v > 0.0) {
            let (x, width) = (at(from), at(from + value) - at(from));
            let name = names.get(part).map_or(row.name.as_str(), String::as_str);
            // Two pixels of the page between neighbours.
            let _ = writeln!(
                svg,
                "<rect class=\"f{}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"18\" rx=\"2\"><title>{}: {} ({:.1} %)</title></rect>",
                part.min(COLOURS),
                y + 4.0,
                (width - 2.0).max(0.6),
                escape(name),
                short(*value),
                value / row.parts.iter().sum::<f64>() * 100.0
            );
            from += value;
        }
        let _ = writeln!(
            svg,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            at(from) + 4.0,
            y + 17.0,
            short(from)
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"name mid\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        (left + to) / 2.0,
        height - 8.0,
        escape(x_title)
    );
    svg + "</svg>\n"
}

const LEGEND_COLUMNS: usize = 5;

fn legend_rows(names: &[String]) -> usize {
    let shown = names.iter().filter(|n| !n.is_empty()).count();
    shown.div_ceil(LEGEND_COLUMNS)
}

fn legend_items(svg: &mut String, names: &[String]) {
    let column = (WIDTH - 20.0) / LEGEND_COLUMNS as f64;
    let shown = names.iter().enumerate().filter(|(_, n)| !n.is_empty());
    for (place, (i, name)) in shown.enumerate() {
        let (x, y) = (
            10.0 + (place % LEGEND_COLUMNS) as f64 * column,
            TOP + (place / LEGEND_COLUMNS) as f64 * 20.0,
        );
        let _ = writeln!(
            svg,
            "<rect class=\"f{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"11\" height=\"11\" rx=\"2\"/>",
            i.min(COLOURS)
        );
        let _ = writeln!(
            svg,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x + 16.0,
            y + 10.0,
            escape(name)
        );
    }
}

/// Four to eight ticks from 0 to `most`.
fn linear(most: f64) -> Vec<f64> {
    let rough = most / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .iter()
        .map(|s| s * power)
        .find(|s| *s >= rough)
        .unwrap_or(rough);
    (0..=10)
        .map(|i| f64::from(i) * step)
        .filter(|t| *t <= most * 1.0001)
        .collect()
}

/// The plots of a page as files, each with the page's style in it: name and text.
pub fn files(page: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for part in page.split("<svg ").skip(1) {
        let (Some((svg, _)), Some((_, label))) =
            (part.split_once("</svg>"), part.split_once("aria-label=\""))
        else {
            continue;
        };
        let title = label.split('"').next().unwrap_or_default();
        let words = title.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<&str> = words.filter(|w| !w.is_empty()).collect();
        let name = words.join("-").to_lowercase() + ".svg";
        let (open, rest) = svg.split_once('>').unwrap_or((svg, ""));
        let style = include_str!("style.css");
        let paper = "<rect width=\"100%\" height=\"100%\" style=\"fill:var(--page)\"/>";
        files.push((
            name,
            format!("<svg {open}>\n<style>{style}</style>\n{paper}{rest}</svg>\n"),
        ));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_apart_and_inside() {
        let places = spread(&[100.0, 101.0, 99.0, 300.0, 299.0], 10.0, 300.0);
        let mut sorted = places.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(
            sorted.windows(2).all(|w| w[1] - w[0] >= LINE - 1e-9),
            "{sorted:?}"
        );
        assert!(sorted[0] >= 10.0 && sorted[4] <= 300.0);
        assert!(
            places[2] < places[0] && places[0] < places[1] && places[4] < places[3],
            "in order"
        );
    }

    #[test]
    fn ticks() {
        assert_eq!(decades(80.0, 30_000.0), [100.0, 1_000.0, 10_000.0]);
        assert_eq!(decades(9.0, 60.0), [10.0, 20.0, 50.0]);
        assert_eq!(decades(40.0, 90.0), [40.0, 50.0, 60.0, 70.0, 80.0, 90.0]);
        assert_eq!(linear(100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        let many = linear(17_345.0);
        assert!((4..=8).contains(&many.len()), "{many:?}");
        let texts = [0.5, 12.0, 3_400.0, 12_345.0, 5e6].map(short);
        assert_eq!(texts, ["0.50", "12", "3400", "12.3k", "5M"]);
    }

    #[test]
    fn plots_are_whole_and_escaped() {
        let series = |name: &str| Series {
            name: name.into(),
            points: vec![(1.0, 5.0), (384.0, 90_000.0)],
        };
        let svg = lines("t", "CPUs", "a & b", &[series("<x>"), series("y")]);
        assert!(svg.contains("&lt;x&gt;") && svg.contains("a &amp; b") && !svg.contains("<x>"));
        assert!(
            svg.contains("class=\"line s0\"")
                && svg.contains("class=\"line s1\"")
                && !svg.contains("NaN")
        );
        // One point makes no line, but no nonsense either.
        let one = lines(
            "t",
            "",
            "",
            &[Series {
                name: "p".into(),
                points: vec![(8.0, 8.0)],
            }],
        );
        assert!(!one.contains("NaN") && !one.contains("inf"), "{one}");
        let rows = [
            Bar {
                name: "a".into(),
                parts: vec![1.0, 0.0, 3.0],
            },
            Bar {
                name: "b".into(),
                parts: vec![],
            },
        ];
        let svg = bars("t", "cycles", &["p".into(), "q".into(), "r".into()], &rows);
        assert!(svg.contains("75.0 %") && !svg.contains("NaN"), "{svg}");
        assert_eq!(svg.matches("height=\"18\"").count(), 2);
    }

    #[test]
    fn plots_stand_alone() {
        let page = format!(
            "<main>{}</main>{}",
            bars("A & b, c", "x", &[], &[]),
            lines("d", "", "", &[])
        );
        let files = files(&page);
        let names: Vec<&str> = files.iter().map(|f| f.0.as_str()).collect();
        assert_eq!(names, ["a-amp-b-c.svg", "d.svg"]);
        assert!(files.iter().all(|f| f.1.starts_with("<svg viewBox")
            && f.1.contains("--c0")
            && f.1.ends_with("</svg>\n")));
    }
}
