//! The plot of what revoking and giving back cost against size, on logarithmic axes.

use super::support::{Samples, provenance};
use std::fmt::Write;

const SIZES: [(&str, &str); 5] =
    [("2m", "2 MiB"), ("16m", "16 MiB"), ("128m", "128 MiB"), ("1g", "1 GiB"), ("4g", "4 GiB")];
/// Name, label, colour (told apart also by those who see few), dashed: a rival.
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

fn x(panel: usize, size: usize) -> f64 {
    let exponent = [1.0, 4.0, 7.0, 10.0, 12.0][size];
    LEFT[panel] + WIDTH * (exponent - 1.0) / 11.0
}

fn y(ns: f64) -> f64 {
    TOP + HEIGHT * (1.0 - (ns.log10() - 3.0) / 7.0)
}

pub(crate) fn plot(samples: &Samples) -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1340 500\" width=\"1340\" height=\"500\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"1340\" height=\"500\" fill=\"#fff\"/>\n",
    );
    text(
        &mut svg,
        70.0,
        30.0,
        "start",
        "#000",
        "<tspan font-size=\"19\" font-weight=\"bold\">What revoking memory and giving it back cost, by size</tspan>",
    );
    for (panel, (title, prefix)) in
        [("disable()", "disable"), ("enable(), then a store to every 4 KiB page", "enable+touch")]
            .into_iter()
            .enumerate()
    {
        axes(&mut svg, panel, title);
        lines(&mut svg, panel, prefix, samples);
    }
    text(
        &mut svg,
        70.0,
        485.0,
        "start",
        "#555",
        &format!("p50; all pages mapped before; another thread running. {}", provenance()),
    );
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, colour: &str, what: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{what}</text>");
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(svg, "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"{colour}\"/>");
}

fn axes(svg: &mut String, panel: usize, title: &str) {
    let (left, right) = (LEFT[panel], LEFT[panel] + WIDTH);
    text(
        svg,
        left,
        TOP - 16.0,
        "start",
        "#000",
        &format!("<tspan font-weight=\"bold\">{title}</tspan>, time, log scale"),
    );
    for (decade, label) in DECADES {
        let at = y(10_f64.powi(decade));
        line(svg, (left, at), (right, at), if decade == 3 { "#444" } else { "#ddd" });
        text(svg, left - 8.0, at + 4.0, "end", "#333", label);
    }
    for (size, (_, label)) in SIZES.iter().enumerate() {
        let at = x(panel, size);
        line(svg, (at, TOP + HEIGHT), (at, TOP + HEIGHT + 5.0), "#444");
        text(svg, at, TOP + HEIGHT + 20.0, "middle", "#333", label);
    }
    text(svg, f64::midpoint(left, right), TOP + HEIGHT + 42.0, "middle", "#333", "size of the mapping, log scale");
}

fn lines(svg: &mut String, panel: usize, prefix: &str, samples: &Samples) {
    // Where each line ends, for its label.
    let mut ends = Vec::new();
    for (name, label, colour, dashed) in SERIES {
        let points: Vec<_> = (0..SIZES.len())
            .filter_map(|i| Some((x(panel, i), y(samples.p50(&format!("{prefix} {name} {}", SIZES[i].0))?))))
            .collect();
        let Some(end) = points.last() else { continue };
        let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dash = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.2\"{dash}/>",
            path.join(" ")
        );
        for (x, y) in &points {
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        ends.push((*end, label, colour));
    }
    ends.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
    let mut lowest = f64::MIN;
    for ((x, y), label, colour) in ends {
        // Labels of lines that end close together make room for each other.
        let at = y.max(lowest + 16.0);
        lowest = at;
        let from = LEFT[panel] + WIDTH + 14.0;
        line(svg, (x + 5.0, y), (from - 4.0, at), &format!("{colour}\" stroke-opacity=\"0.35"));
        text(svg, from, at + 4.0, "start", colour, label);
    }
}
