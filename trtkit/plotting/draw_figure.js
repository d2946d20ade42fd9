// Draws the figure whose JSON is the content of an element.
async function drawFigure(id, host, options) {
  const place = document.getElementById(id);
  const Plotly = await loadPlotly({ host });
  const figure = JSON.parse(place.querySelector("script").textContent);
  place.textContent = "";
  Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false, ...options });
}
