// Loads plotly.js once for all figures of a page; resolves to it.
//   host:   address to load it from when the page does not carry it
//   wait:   milliseconds before `host` is asked, so that an output or widget that carries plotly.js can come first
//   packed: plotly.js compressed by gzip; without it, an element of the page with `data-trtkit-library` is looked for
function loadPlotly({ host, wait = 0, packed = null }) {
  const page = window;
  if (page.Plotly) return Promise.resolve(page.Plotly);
  page.trtkitPlotly ||= new Promise((resolve) => { page.trtkitPlotlyReady = resolve; });
  const insert = (source) => {
    // With `define` on the page (an AMD loader), plotly.js would register there and set no window.Plotly.
    const tag = document.createElement("script"), define = page.define;
    const done = () => {
      page.define = define;
      if (page.Plotly) page.trtkitPlotlyReady?.(page.Plotly); else page.trtkitPlotlyLoading = false;
    };
    page.define = undefined;
    Object.assign(tag, source, { onload: done, onerror: done });
    document.head.appendChild(tag);
    if (source.text) done();
  };
  const decode = (element) => element && Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
  if (page.trtkitPlotlyLoading) return page.trtkitPlotly;
  const carried = packed?.byteLength ? packed : decode(document.querySelector("[data-trtkit-library]"));
  if (carried) {
    page.trtkitPlotlyLoading = true;
    const stream = new Blob([carried]).stream().pipeThrough(new DecompressionStream("gzip"));
    new Response(stream).text().then((text) => insert({ text }));
  } else {
    setTimeout(() => {
      if (page.Plotly || page.trtkitPlotlyLoading) return;
      page.trtkitPlotlyLoading = true;
      insert({ src: host });
    }, wait);
  }
  return page.trtkitPlotly;
}
