"use strict";
// Charts: Plotly draws what the page holds as JSON, in the colours of the style sheet.
const charts = [...document.querySelectorAll(".chart")];
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;

function inColours(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const changed = {
    ...layout,
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { ...layout.font, color: colour("--text"), family: getComputedStyle(document.body).fontFamily },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") } },
    modebar: { bgcolor: "transparent", color: colour("--quiet"), activecolor: colour("--accent") },
    margin: { ...layout.margin, t: layout.margin.t + (touch ? 30 : 15) }, // for the buttons
    dragmode: touch ? false : "zoom", // a finger scrolls the page; the buttons above a chart zoom
  };
  for (const key of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
    changed[key] = { ...layout[key], gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false };
  }
  return changed;
}

function drawCharts() {
  for (const chart of charts) {
    const figure = JSON.parse(document.getElementById(chart.dataset.figure).textContent);
    const options = {
      responsive: true,
      displaylogo: false,
      displayModeBar: touch ? true : "hover",
      modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"], ["toImage"]], // none that uploads
    };
    Plotly.react(chart, figure.data, inColours(figure.layout), options);
  }
}

if (charts.length) {
  drawCharts();
  dark.addEventListener("change", drawCharts);
}

// Sliders: one picture of several, with its label.
for (const slider of document.querySelectorAll(".slider")) {
  const range = slider.querySelector("input");
  if (!range) continue;
  const frames = [...slider.querySelectorAll(".frame")];
  const output = slider.querySelector("output");
  const show = () => {
    const number = Number(range.value);
    frames.forEach((frame, i) => { frame.hidden = i !== number; });
    output.textContent = frames[number].dataset.label;
    range.setAttribute("aria-valuetext", frames[number].dataset.label);
  };
  range.addEventListener("input", show);
  show();
}

// Commands: copied, or selected where the browser allows no more.
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
