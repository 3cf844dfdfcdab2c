"use strict";
/* Draw the charts of the page with Bokeh, those in closed details when they open. */
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const byKey = new Map(charts.map((chart) => [chart.key, chart]));
  const views = [];

  function draw(place) {
    const chart = byKey.get(place.dataset.chart);
    const rows = chart.rows.length;
    const figure = Bokeh.Plotting.figure({
      height: rows ? 90 + 30 * rows : 250,
      sizing_mode: "stretch_width",
      tools: "pan,box_zoom,reset,save",
      toolbar_location: "right",
      x_axis_label: chart.x_label,
      y_axis_label: chart.y_label,
      ...ranges(chart),
    });
    figure.toolbar.logo = null;
    const glyphs = new Map();
    for (const series of chart.series) {
      const drawn = rows ? intervals(figure, series) : line(figure, series);
      glyphs.set(series.name, [...(glyphs.get(series.name) ?? []), ...drawn]);
    }
    if (rows) {
      nameRows(figure, chart.rows);
    }
    connect(place, glyphs);
    Bokeh.Plotting.show(figure, place).then((view) => views.push(view));
  }

  function line(figure, series) {
    const source = sourceOf(series);
    const style = {source, line_color: series.colour, line_dash: series.dash, line_width: series.faint ? 1 : 2,
      line_alpha: series.faint ? 0.3 : 1};
    const drawn = [figure.line({field: "x"}, {field: "y"}, style)];
    const few = series.x.length < 30 && !series.faint;
    if (few) {
      drawn.push(figure.scatter({field: "x"}, {field: "y"}, {source, size: 6, color: series.colour}));
    }
    if (series.low.length) {
      drawn.push(figure.segment({field: "x"}, {field: "low"}, {field: "x"}, {field: "high"},
        {source, line_color: series.colour, line_alpha: 0.6}));
    }
    if (!series.faint) {
      hover(figure, few ? drawn[1] : drawn[0], series);
    }
    return drawn;
  }

  function intervals(figure, series) {
    const source = sourceOf(series);
    const segment = figure.segment({field: "low"}, {field: "y"}, {field: "high"}, {field: "y"},
      {source, line_color: series.colour, line_width: 2});
    const means = figure.scatter({field: "x"}, {field: "y"}, {source, size: 9, color: series.colour});
    hover(figure, means, series);
    return [segment, means];
  }

  function sourceOf(series) {
    const data = {x: series.x, y: series.y};
    if (series.low.length) {
      Object.assign(data, {low: series.low, high: series.high});
    }
    return new Bokeh.ColumnDataSource({data});
  }

  function hover(figure, renderer, series) {
    const tooltips = [["at", "@x{0,0.[00]}"], ["value", "@y{0,0.[000]}"]];
    if (series.low.length) {
      tooltips.push(["95 % interval", "@low{0.000} - @high{0.000}"]);
    }
    figure.add_tools(new Bokeh.HoverTool({renderers: [renderer], tooltips, mode: "mouse"}));
  }

  /* Return the ends of the axes that the data does not set; rows go from top to bottom. */
  function ranges(chart) {
    const found = {};
    if (chart.limits) {
      const [low, high] = chart.limits;
      const margin = 0.04 * (high - low);
      const values = new Bokeh.Range1d({start: low - margin, end: high + margin});
      found[chart.rows.length ? "x_range" : "y_range"] = values;
    }
    if (chart.rows.length) {
      found.y_range = new Bokeh.Range1d({start: chart.rows.length - 0.4, end: -0.6});
    }
    return found;
  }

  function nameRows(figure, rows) {
    const places = rows.map((_, place) => place);
    figure.yaxis.ticker = new Bokeh.FixedTicker({ticks: places});
    figure.yaxis.major_label_overrides = new Map(places.map((place) => [place, rows[place]]));
    figure.ygrid.visible = false;
  }

  /* Let the buttons of the legend hide and show their lines. */
  function connect(place, glyphs) {
    for (const button of place.closest("figure").querySelectorAll("button[data-series]")) {
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(shown));
        for (const glyph of glyphs.get(button.dataset.series) ?? []) {
          glyph.visible = shown;
        }
      });
    }
  }

  function drawIn(root) {
    for (const place of root.querySelectorAll(".plot:empty")) {
      if (!place.closest("details:not([open])")) {
        draw(place);
      }
    }
  }

  document.addEventListener("toggle", (event) => drawIn(event.target), true);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const place of document.querySelectorAll(".plot")) {
      place.replaceChildren();
    }
    drawIn(document);
  });
  drawIn(document);
})();
