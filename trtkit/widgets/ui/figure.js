// The front end of ClickableFigure (anywidget); plotly_loader.js, put in front of this file, defines loadPlotly.
async function render({ model, el }) {
  const place = document.createElement("div");
  place.style.width = "100%";
  const parse = () => JSON.parse(model.get("figure") || "null");
  const setSize = (figure) => {
    place.style.minHeight = `${figure.layout.height ?? 450}px`;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", model.get("label"));
  };
  const first = parse();
  if (first) setSize(first);
  el.appendChild(place);
  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  const plotly = await loadPlotly({ host: model.get("host"), wait: 15000, packed: model.get("library") });
  let listening = false;
  const draw = async () => {
    const figure = parse();
    if (!figure) return;
    setSize(figure);
    await plotly.react(place, figure.data, { ...figure.layout, autosize: true }, options);
    if (listening) return;
    listening = true;
    place.on("plotly_click", (event) => {
      const point = event.points[0];
      if (point?.customdata !== undefined) model.send({ kind: "click", data: point.customdata });
    });
  };
  model.on("change:figure", draw);
  await draw();
  const observer = new ResizeObserver(() => { if (place.offsetWidth && listening) plotly.Plots.resize(place); });
  observer.observe(place);
  return () => { observer.disconnect(); model.off("change:figure", draw); plotly.purge(place); };
}

export default { render };
