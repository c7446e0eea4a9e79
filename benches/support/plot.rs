//! The plot of what revoking and giving back cost against size, on logarithmic axes.

use super::svg::{Anchor, Svg};
use super::{Samples, provenance};

const SIZES: [(&str, &str); 5] =
    [("2m", "2 MiB"), ("16m", "16 MiB"), ("128m", "128 MiB"), ("1g", "1 GiB"), ("4g", "4 GiB")];
/// Name, label, colour (distinct for colour-blind readers too), and whether the line is dashed: a rival.
const SERIES: [(&str, &str, &str, bool); 6] = [
    ("detach", "Detach", "#0072b2", false),
    ("replace", "Replace", "#009e73", false),
    ("zap", "Zap", "#d55e00", false),
    ("mprotect", "mprotect", "#000000", true),
    ("munmap", "munmap + mmap", "#8f6fb0", true),
    ("guard", "MADV_GUARD", "#b08900", true),
];
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 330.0;
const TOP: f64 = 84.0;
const LEFT: [f64; 2] = [70.0, 720.0];
/// Powers of ten of nanoseconds.
const DECADES: [(i32, &str); 8] =
    [(3, "1 µs"), (4, "10 µs"), (5, "100 µs"), (6, "1 ms"), (7, "10 ms"), (8, "100 ms"), (9, "1 s"), (10, "10 s")];

const STRONG: &str = "stroke=\"#444\"";

fn x(panel: usize, size: usize) -> f64 {
    let exponent = [1.0, 4.0, 7.0, 10.0, 12.0][size];
    LEFT[panel] + WIDTH * (exponent - 1.0) / 11.0
}

fn y(ns: f64) -> f64 {
    TOP + HEIGHT * (1.0 - (ns.log10() - 3.0) / 7.0)
}

pub(crate) fn plot(samples: &Samples) -> String {
    let mut svg = Svg::new(1340, 500, "What revoking memory and giving it back cost, by size");
    let heading = "font-size=\"19\" font-weight=\"bold\"";
    svg.text(70.0, 30.0, Anchor::Start, heading, "What revoking memory and giving it back cost, by size");
    for (panel, (title, prefix)) in
        [("disable()", "disable"), ("enable(), then a store to every 4 KiB page", "enable+touch")]
            .into_iter()
            .enumerate()
    {
        axes(&mut svg, panel, title);
        lines(&mut svg, panel, prefix, samples);
    }
    let source = format!("p50; all pages mapped before; another thread running. {}", provenance());
    svg.text(70.0, 485.0, Anchor::Start, "fill=\"#555\"", &source);
    svg.end()
}

fn axes(svg: &mut Svg, panel: usize, title: &str) {
    let (left, right) = (LEFT[panel], LEFT[panel] + WIDTH);
    svg.text(left, TOP - 16.0, Anchor::Start, "font-weight=\"bold\"", &format!("{title}: time, log scale"));
    for (decade, label) in DECADES {
        let at = y(10_f64.powi(decade));
        svg.line((left, at), (right, at), if decade == 3 { STRONG } else { "stroke=\"#ddd\"" });
        svg.text(left - 8.0, at + 4.0, Anchor::End, "", label);
    }
    for (size, (_, label)) in SIZES.iter().enumerate() {
        let at = x(panel, size);
        svg.line((at, TOP + HEIGHT), (at, TOP + HEIGHT + 5.0), STRONG);
        svg.text(at, TOP + HEIGHT + 20.0, Anchor::Middle, "", label);
    }
    let middle = f64::midpoint(left, right);
    svg.text(middle, TOP + HEIGHT + 42.0, Anchor::Middle, "", "size of the mapping, log scale");
}

fn lines(svg: &mut Svg, panel: usize, prefix: &str, samples: &Samples) {
    // The end of each line, for its label.
    let mut ends = Vec::new();
    for (name, label, colour, dashed) in SERIES {
        let points: Vec<_> = (0..SIZES.len())
            .filter_map(|i| Some((x(panel, i), y(samples.p50(&format!("{prefix} {name} {}", SIZES[i].0))?))))
            .collect();
        let Some(end) = points.last() else { continue };
        let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let dash = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        svg.path(
            format_args!("M{}", path.join("L")),
            &format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.2\"{dash}"),
        );
        for point in &path {
            // A line of no length with round ends is a dot.
            svg.path(
                format_args!("M{point}h0"),
                &format!("stroke=\"{colour}\" stroke-width=\"6\" stroke-linecap=\"round\""),
            );
        }
        ends.push((*end, label, colour));
    }
    ends.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
    let mut lowest = f64::MIN;
    for ((x, y), label, colour) in ends {
        // Labels of lines that end close together are moved apart.
        let at = y.max(lowest + 16.0);
        lowest = at;
        let from = LEFT[panel] + WIDTH + 14.0;
        svg.line((x + 5.0, y), (from - 4.0, at), &format!("stroke=\"{colour}\" stroke-opacity=\"0.35\""));
        svg.text(from, at + 4.0, Anchor::Start, &format!("fill=\"{colour}\""), label);
    }
}
