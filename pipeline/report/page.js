// Draws the figures of #figures with plotly.js, in the colours of the page's style sheet.
"use strict";

const FIGURES = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

const probe = document.body.appendChild(document.createElement("i"));
probe.hidden = true;

function colour(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

function traces(figure) {
  const hues = [colour("--accent"), colour("--second")];
  return figure.series.flatMap((series, i) => {
    const line = { x: series.x, y: series.y, name: series.label, line: { color: hues[i], width: 2 } };
    line.mode = series.x.length > 1 ? "lines" : "markers";
    line.hovertemplate = (figure.percent ? "%{y:.1%}" : "%{y:.4~g}") + "<extra>" + series.label + "</extra>";
    if (!series.low) return [line];
    const edge = { x: series.x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    const band = { fill: "tonexty", fillcolor: colour("--band") };
    return [{ ...edge, y: series.low }, { ...edge, ...band, y: series.high }, line];
  });
}

function layout(figure) {
  const axis = {
    gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true,
    tickfont: { color: colour("--muted") }, nticks: 6,
  };
  return {
    height: 240,
    margin: { l: 44, r: 12, t: 8, b: 28 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
    hoverlabel: { bgcolor: colour("--surface"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    hovermode: "x unified",
    showlegend: figure.series.length > 1,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    xaxis: { ...axis, tickformat: "~s", hoverformat: ",d" },
    yaxis: {
      ...axis,
      type: figure.log ? "log" : "linear",
      tickformat: figure.percent ? ".0%" : "~g",
      rangemode: figure.percent ? "tozero" : "normal",
      ...(figure.log ? { dtick: 1 } : {}),
    },
  };
}

function draw() {
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  for (const place of document.querySelectorAll("[data-figure]")) {
    const figure = FIGURES[Number(place.dataset.figure)];
    Plotly.react(place, traces(figure), layout(figure), config);
  }
}

draw();
dark.addEventListener("change", draw);
// Paper is white.
addEventListener("beforeprint", () => { document.documentElement.dataset.paper = ""; draw(); });
addEventListener("afterprint", () => { delete document.documentElement.dataset.paper; draw(); });
