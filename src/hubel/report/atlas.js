// A page for every layer and every kernel, drawn when its address stands in the location bar; nothing leaves this file.
(() => {
  "use strict";
  const view = document.getElementById("view"), stored = document.getElementById("atlas-data");
  if (!view || !stored) return;
  const POSITIVE = [213, 94, 0], NEGATIVE = [0, 114, 178], STEPS = 127, PAGE = 48;
  let data = null, pictures = null, layers = null, sort = "", shown = "weights";

  // ---- small things
  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
    element.append(...children.flat().filter((c) => c !== null && c !== undefined));
    return element;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const minus = (text) => text.replace("-", "\u2212");
  const number = (v) => {
    if (v === 0) return "0";
    if (Number.isInteger(v)) return minus(v.toLocaleString("en"));
    const size = Math.floor(Math.log10(Math.abs(v)));
    return minus(size < -4 || size > 6 ? v.toExponential(2) : v.toFixed(Math.max(0, 2 - size)));
  };
  const count = (n, noun) => `${n.toLocaleString("en")}\u00a0${noun}${n === 1 ? "" : "s"}`;
  const middle = (cell) => (Array.isArray(cell) ? cell[0] : cell);
  const hash = (address) => "#" + encodeURIComponent(address).replaceAll("%3A", ":").replaceAll("%40", "@").replaceAll("%2F", "/");

  const load = () => {
    if (data) return;
    data = JSON.parse(stored.textContent);
    layers = new Map(data.layers.map((layer, i) => [layer.address, Object.assign(layer, { index: i })]));
  };
  const open = (layer) => {
    if (layer.opened) return layer;
    layer.opened = true;
    layer.weights = new Int8Array(bytes(layer.weights));
    if (layer.before) layer.before = new Int8Array(bytes(layer.before));
    layer.which = new Uint16Array(bytes(layer.which));
    if (layer.patches) for (const name of ["top", "middle"]) {
      layer.patches[name] = new Int16Array(bytes(layer.patches[name]));
      layer.patches[`${name}_shares`] = new Uint8Array(bytes(layer.patches[`${name}_shares`]));
    }
    return layer;
  };

  // ---- pictures
  const canvas = (width, height, alt, className) => {
    const element = make("canvas", { width, height, role: "img", "aria-label": alt, class: className || "pixels" });
    element.style.aspectRatio = `${width} / ${height}`;
    return element;
  };
  const at = (layer, kernel) => (layer.drawn ? layer.drawn.indexOf(kernel) : kernel);
  // from: "weights", or "before", an earlier checkpoint's.
  const slicesOf = (layer, kernel, from = "weights") => {
    const n = layer.size.reduce((a, b) => a * b, 1), j = at(layer, kernel);
    if (j < 0) return null;
    const all = layer[from].subarray(j * layer.shown * n, (j + 1) * layer.shown * n);
    return { n, all, which: layer.which.subarray(j * layer.shown, (j + 1) * layer.shown) };
  };
  const norms = (layer, { n, all }) => [...Array(layer.shown).keys()].map((s) =>
    Math.hypot(...all.subarray(s * n, (s + 1) * n)) * layer.limit / STEPS);
  const alternative = (layer, kernel, from) => {
    const kept = slicesOf(layer, kernel, from), address = `${layer.address}:${kernel}`;
    if (!kept) return `Kernel ${address}`;
    const numbers = [...kept.all].map((w) => number(Number((w * layer.limit / STEPS).toPrecision(2))));
    const spoken = numbers.length <= 27 ? numbers.join(" ") : `${count(layer.shown, "slice")}, L2 norms ${norms(layer, kept).map((v) => number(Number(v.toPrecision(2)))).join(", ")}`;
    return `Kernel ${address}${from === "before" ? " earlier" : ""}, ${layer.size.join("×") || 1} weights a slice: ${spoken}`;
  };
  // One kernel: its slices side by side, each as large as it fits; 1-D kernels are rows, 1×1 kernels one mosaic.
  const kernelPicture = (layer, kernel, wide, limit, from = "weights") => {
    const kept = slicesOf(layer, kernel, from);
    if (!kept) return make("span", { class: "size" }, "not drawn");
    let [H, W] = layer.size.length === 1 ? [1, layer.size[0]] : layer.size.length === 3 ? [layer.size[0] * layer.size[1], layer.size[2]] : layer.size;
    let tiles = layer.shown, columns = Math.ceil(Math.sqrt(tiles));
    if (H * W === 1) { W = Math.ceil(Math.sqrt(tiles)); H = Math.ceil(tiles / W); tiles = 1; columns = 1; }
    if (layer.size.length === 1) columns = 1;
    if (layer.colour) { tiles = 1; columns = 1; }
    const gap = tiles > 1 ? 5 : 0, cell = Math.max(1, Math.floor((wide - gap * (columns - 1)) / columns / W));
    const rows = Math.ceil(tiles / columns), width = columns * W * cell + gap * (columns - 1), height = rows * H * cell + gap * (rows - 1);
    const element = canvas(width, height, alternative(layer, kernel, from)), context = element.getContext("2d");
    const scale = STEPS * limit / layer.limit;
    if (tiles > 1) {
      context.strokeStyle = "rgba(128,132,138,.45)";
      for (let t = 0; t < tiles; t++) context.strokeRect((t % columns) * (W * cell + gap) + 0.5, Math.floor(t / columns) * (H * cell + gap) + 0.5, W * cell - 1, H * cell - 1);
    }
    for (let t = 0; t < tiles; t++) for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
      const left = (t % columns) * (W * cell + gap) + x * cell, top = Math.floor(t / columns) * (H * cell + gap) + y * cell, i = y * W + x;
      if (layer.colour) {
        const rgb = [0, 1, 2].map((c) => Math.round(127.5 + 127.5 * Math.max(-1, Math.min(1, kept.all[c * kept.n + i] / scale))));
        context.fillStyle = `rgb(${rgb})`; context.fillRect(left, top, cell, cell);
        continue;
      }
      const value = tiles === 1 && kept.n === 1 ? kept.all[i] : kept.all[t * kept.n + i];
      if (value === undefined) continue;
      const share = Math.min(1, Math.abs(value) / scale);
      context.fillStyle = `rgba(${value > 0 ? POSITIVE : NEGATIVE},${share})`; context.fillRect(left, top, cell, cell);
      if (value < 0 && share > 0.1 && cell >= 6) {
        context.fillStyle = share > 0.45 ? "rgba(255,255,255,.9)" : `rgb(${NEGATIVE})`;
        context.fillRect(left + Math.round(cell * 0.28), top + Math.floor(cell / 2), Math.max(2, cell - 2 * Math.round(cell * 0.28)), Math.max(1, Math.floor(cell / 8)));
      }
    }
    return element;
  };

  const images = () => (pictures = pictures || JSON.parse(document.getElementById("atlas-images").textContent));
  const decoded = new Map();
  const image = (i) => {
    if (!decoded.has(i)) {
      const element = new Image();
      element.src = images().uris[i];
      decoded.set(i, element.decode().then(() => element));
    }
    return decoded.get(i);
  };
  // What a place of a map sees, in pixels of the network's input: [first, behind the last] of y and x, not yet cut.
  const box = (layer, y, x) => [y, x].map((place, axis) => {
    const side = layer.patches.box[axis];
    return side.whole ? [0, data.input[axis]] : [side.start + place * side.stride, side.start + place * side.stride + side.extent];
  });
  const patchPicture = (layer, kernel, which, n, size) => {
    const { count: many, [which]: places, [`${which}_shares`]: shares } = layer.patches;
    const [i, y, x] = places.subarray((kernel * many + n) * 3, (kernel * many + n) * 3 + 3);
    if (i < 0) return null;
    const share = Math.round(100 * shares[kernel * many + n] / 255), [H, W] = data.input;
    const known = Boolean(layer.patches.box), [[top, bottom], [left, right]] = known ? box(layer, y, x) : [[0, H], [0, W]];
    const alt = `Patch of image ${i}, rows ${Math.max(0, top)} to ${Math.min(H, bottom)}, columns ${Math.max(0, left)} to ${Math.min(W, right)}: ${share} % of the kernel's largest activation`;
    const element = canvas(size, size, alt, "patch");
    image(i).then((picture) => {
      const context = element.getContext("2d"), sy = picture.naturalHeight / H, sx = picture.naturalWidth / W;
      // The whole field, padding included, scaled to the square; a field larger than the image shows the image.
      const [t, b, l, r] = [Math.max(top, -H), Math.min(bottom, 2 * H), Math.max(left, -W), Math.min(right, 2 * W)];
      const cut = [Math.max(0, t), Math.min(H, b), Math.max(0, l), Math.min(W, r)];
      const span = b - t > H && r - l > W ? [cut[0], cut[1], cut[2], cut[3]] : [t, b, l, r];
      const scale = size / Math.max(span[1] - span[0], span[3] - span[2]);
      const dx = (size - scale * (span[3] - span[2])) / 2, dy = (size - scale * (span[1] - span[0])) / 2;
      hatch(context, size);
      context.imageSmoothingEnabled = scale < 3;
      context.drawImage(picture, cut[2] * sx, cut[0] * sy, (cut[3] - cut[2]) * sx, (cut[1] - cut[0]) * sy,
        dx + (cut[2] - span[2]) * scale, dy + (cut[0] - span[0]) * scale, (cut[3] - cut[2]) * scale, (cut[1] - cut[0]) * scale);
      outline(context, layer, (left + right) / 2, (top + bottom) / 2, span, scale, dx, dy);
    });
    return make("li", {}, element, make("span", { class: "size" }, `#${i} · ${share}\u00a0%`));
  };
  const hatch = (context, size) => {
    context.fillStyle = "#8a8f96"; context.fillRect(0, 0, size, size);
    context.strokeStyle = "#c9ccd1"; context.lineWidth = 2;
    for (let i = -size; i < size; i += 8) { context.beginPath(); context.moveTo(i, 0); context.lineTo(i + size, size); context.stroke(); }
  };
  // The 90 % effective field: a circle about the middle of the theoretical one.
  const outline = (context, layer, x, y, span, scale, dx, dy) => {
    const radius = middle(fact(layer.address, "receptive_field", "r90"));
    if (!radius || !layer.patches.box || layer.patches.box.some((side) => side.whole)) return;
    for (const [colour, wide] of [["rgba(0,0,0,.65)", 3], ["#fff", 1.4]]) {
      context.strokeStyle = colour; context.lineWidth = wide; context.beginPath();
      context.arc(dx + (x - span[2]) * scale, dy + (y - span[0]) * scale, radius * scale, 0, 7); context.stroke();
    }
  };
  const fieldPicture = (layer) => {
    const [H, W] = layer.field.size, m = new Uint8Array(bytes(layer.field.m));
    const element = canvas(W, H, `Effective receptive field of ${layer.address}, ${H}×${W} cells, strongest in its middle`), context = element.getContext("2d");
    const pixels = context.createImageData(W, H);
    m.forEach((v, i) => pixels.data.set([...POSITIVE, v], 4 * i));
    context.putImageData(pixels, 0, 0);
    return make("figure", { class: "erf" }, element, make("figcaption", { class: "size" }, "What it uses of the image: mean size of the gradient at every pixel."));
  };

  // Rows: frequencies, the highest on top; columns: angles, each headed by a stripe that lies as it does.
  const tuningPicture = (layer, kernel) => {
    const { angles, frequencies } = data.grid, n = angles.length * frequencies.length;
    const answers = new Uint8Array(bytes(layer.tuning)).subarray(kernel * n, (kernel + 1) * n), best = answers.indexOf(Math.max(...answers));
    if (!answers.some(Boolean)) return make("p", { class: "size" }, "It answers to none of the stripes.");
    const cell = 30, head = 30, said = `strongest at ${angles[Math.floor(best / frequencies.length)]}° and ${frequencies[best % frequencies.length]} cycles per pixel`;
    const element = canvas(angles.length * cell, head + frequencies.length * cell, `Answers to stripes of ${angles.length} angles and ${frequencies.length} frequencies: ${said}`, "tuning");
    const context = element.getContext("2d");
    answers.forEach((v, i) => {
      const a = Math.floor(i / frequencies.length), q = i % frequencies.length, x = a * cell, y = head + (frequencies.length - 1 - q) * cell;
      context.fillStyle = `rgba(${POSITIVE},${v / 255})`; context.fillRect(x, y, cell - 1, cell - 1);
      context.strokeStyle = "rgba(128,132,138,.4)"; context.lineWidth = 1; context.strokeRect(x + 0.5, y + 0.5, cell - 2, cell - 2);
    });
    context.strokeStyle = "#80848a"; context.lineWidth = 2.5;
    angles.forEach((angle, a) => {
      const [dx, dy] = [Math.cos(angle * Math.PI / 180) * 10, -Math.sin(angle * Math.PI / 180) * 10], x = a * cell + cell / 2, y = head / 2;
      context.beginPath(); context.moveTo(x - dx, y - dy); context.lineTo(x + dx, y + dy); context.stroke();
    });
    return make("figure", { class: "stripes" }, element, make("figcaption", { class: "size" }, `Columns: how the stripes lie. Rows: ${frequencies[frequencies.length - 1]} cycles per pixel on top, ${frequencies[0]} at the bottom. The stronger the colour, the more it answers: ${said}.`), layer.hue ? huePicture(layer, kernel) : "");
  };
  const huePicture = (layer, kernel) => {
    const { hues } = data.grid, answers = new Uint8Array(bytes(layer.hue)).subarray(kernel * hues.length, (kernel + 1) * hues.length), high = 44, cell = 30;
    const element = canvas(hues.length * cell, high, `Answers to ${hues.length} plain colours: strongest at a hue of ${hues[answers.indexOf(Math.max(...answers))]}°`, "tuning"), context = element.getContext("2d");
    answers.forEach((v, i) => {
      const tall = Math.max(1, v / 255 * high);
      context.fillStyle = `hsl(${hues[i]} 80% 50%)`; context.fillRect(i * cell, high - tall, cell - 3, tall);
    });
    return make("div", {}, element, make("p", { class: "size" }, "To a plain image of each hue, by height."));
  };
  // The kernel's feature map of each pictured image, side by side, on the layer's scale.
  const mapsPicture = (layer, kernel) => {
    const { size: [N, M, H, W], kernels, limit, values } = layer.maps, j = kernels.indexOf(kernel);
    if (j < 0) return make("p", { class: "size" }, `Kept for the ${kernels.length} kernels of this layer that answer most: ${kernels.map((k) => `:${k}`).join(", ")}.`);
    const numbers = new Int8Array(bytes(values));
    const figures = [...Array(N).keys()].map((i) => {
      const own = numbers.subarray((i * M + j) * H * W, (i * M + j + 1) * H * W), element = canvas(W, H, `Feature map of ${layer.address}:${kernel}, pictured image ${i + 1}: largest ${number(Number((Math.max(...own) * limit / STEPS).toPrecision(2)))}`);
      const context = element.getContext("2d"), pixels = context.createImageData(W, H);
      own.forEach((v, p) => pixels.data.set([...(v > 0 ? POSITIVE : NEGATIVE), Math.round(Math.abs(v) * 255 / STEPS)], 4 * p));
      context.putImageData(pixels, 0, 0);
      return make("figure", {}, element, make("figcaption", { class: "size" }, `image ${i + 1}`));
    });
    return make("div", {}, make("div", { class: "answers" }, figures), make("p", { class: "size" }, `Orange is positive, blue negative; scale to \u00b1${number(Number(limit.toPrecision(3)))}, the layer's.`));
  };

  // ---- numbers
  const fact = (address, id, name) => {
    const table = data.facts.find((t) => t.id === id), row = table && table.layers[address];
    return row ? row[table.columns.findIndex((c) => c.name === name)] : null;
  };
  const cells = (table, layer, kernel) => {
    const rows = table.layers[layer.address], j = rows ? rows.k.indexOf(kernel) : -1;
    return j < 0 ? null : rows.cells.map((column) => column[j]);
  };
  const spoken = (cell, column, layer) => {
    const value = middle(cell);
    if (value === null || value === undefined) return null;
    if (column.flag) return value ? "yes" : "no";
    if (column.name === "top_class") return data.classes && data.classes[value] !== undefined ? data.classes[value] : String(value);
    const share = column.unit.startsWith("share"), show = (v) => (share ? `${number(Number((100 * v).toPrecision(3)))} %` : number(v));
    const unit = share || !column.unit ? "" : ` ${column.unit}`;
    if (!Array.isArray(cell)) return show(value) + unit;
    const verdict = cell[3] === null ? "" : cell[3] ? "" : ", undecided";
    return `${show(value)}${unit} (${show(cell[1])} to ${show(cell[2])}${verdict})`;
  };
  const listed = (title, columns, values, layer) => {
    const pairs = columns.map((column, i) => [column, spoken(values[i], column, layer)]).filter(([column, text]) => text !== null && !(column.flag && text === "no"));
    if (!pairs.length) return null;
    return make("div", { class: "facts" }, make("h2", {}, title), make("dl", {}, pairs.map(([column, text]) => [make("dt", {}, column.label), make("dd", {}, text)]).flat()));
  };
  const findings = (address) => {
    const about = data.findings.filter((f) => f.targets.some((t) => t === address || t.startsWith(address + ":")));
    return about.length ? make("ul", { class: "findings" }, about.slice(0, 20).map((f) => make("li", { class: f.severity }, make("b", {}, f.severity), " ", f.message))) : null;
  };

  // ---- pages
  const head = (title, what, links) => [
    make("p", { class: "crumbs" }, make("a", { href: "#summary" }, "\u2190 the whole network"), ...links.map((link) => [" \u00b7 ", link]).flat()),
    make("h1", { tabindex: "-1" }, title), make("p", { class: "lead" }, what),
  ];
  const layerPage = (layer) => {
    const near = [layer.index - 1, layer.index + 1].map((i) => data.layers[i]);
    const links = [near[0] && make("a", { href: hash(near[0].address) }, `before: ${near[0].address}`), near[1] && make("a", { href: hash(near[1].address) }, `after: ${near[1].address}`)].filter(Boolean);
    const facts = data.facts.map((t) => t.layers[layer.address] && listed(t.title, t.columns, t.layers[layer.address], layer));
    const extra = layer.field ? [fieldPicture(layer)] : [];
    return [...head(layer.address, `${count(layer.kernels, "kernel")}: ${layer.what}`, links), findings(layer.address),
      make("div", { class: "sheet" }, facts.filter(Boolean), extra), ...gallery(layer)].filter(Boolean);
  };
  const ordered = (layer) => {
    const kernels = [...Array(layer.kernels).keys()];
    const [id, name] = sort.split("/"), table = data.tables.find((t) => t.id === id), rows = table && table.layers[layer.address];
    if (!rows) return kernels.map((k) => [k, null]);
    const column = table.columns.findIndex((c) => c.name === name), values = new Map(rows.k.map((k, j) => [k, middle(rows.cells[column][j])]));
    const known = (k) => values.get(k) ?? -Infinity;
    return kernels.map((k) => [k, values.get(k) ?? null]).sort((a, b) => known(b[0]) - known(a[0]) || a[0] - b[0]);
  };
  const gallery = (layer) => {
    const tiles = make("ul", { class: "gallery" }), note = make("p", { class: "size", role: "status" }), pages = make("p", { class: "choices" });
    let first = 0;
    const fill = () => {
      const order = ordered(layer), part = order.slice(first, first + PAGE);
      tiles.replaceChildren(...part.map(([k, value]) => {
        const patch = shown === "patches" && layer.patches ? patchPicture(layer, k, "top", 0, 84) : null;
        const picture = shown === "patches" ? (patch ? patch.firstChild : make("span", { class: "size" }, "never above zero")) : kernelPicture(layer, k, 84, layer.limit);
        return make("li", {}, make("a", { href: hash(`${layer.address}:${k}`) }, picture, make("span", {}, `:${k}`, value === null ? null : make("small", {}, ` ${number(value)}`))));
      }));
      note.textContent = order.length > PAGE ? `Kernels ${first + 1} to ${Math.min(first + PAGE, order.length)} of ${order.length.toLocaleString("en")}; orange is positive, blue with a minus is negative, all on one scale, \u00b1${number(Number(layer.limit.toPrecision(3)))}.` : `All on one scale, \u00b1${number(Number(layer.limit.toPrecision(3)))}; orange is positive, blue with a minus is negative.`;
      const turn = (text, to) => { const b = make("button", { type: "button" }, text); b.disabled = to < 0 || to >= order.length; b.addEventListener("click", () => { first = to; fill(); }); return b; };
      pages.replaceChildren(...(order.length > PAGE ? [turn("earlier", first - PAGE), turn("later", first + PAGE)] : []));
      roam(tiles);
    };
    const choose = make("select", { id: "order" }, make("option", { value: "" }, "their number"));
    for (const table of data.tables) for (const column of table.columns) if (table.layers[layer.address] && column.name !== "top_class") choose.append(make("option", { value: `${table.id}/${column.name}` }, `${table.title}: ${column.label}`));
    choose.value = [...choose.options].some((o) => o.value === sort) ? sort : "";
    choose.addEventListener("change", () => { sort = choose.value; first = 0; fill(); });
    const kinds = layer.patches ? ["weights", "patches"].map((kind) => {
      const b = make("button", { type: "button", "aria-pressed": String(shown === kind) }, kind === "weights" ? "weights" : "strongest patch");
      b.addEventListener("click", () => { shown = kind; for (const other of b.parentNode.querySelectorAll("[aria-pressed]")) other.setAttribute("aria-pressed", String(other === b)); fill(); });
      return b;
    }) : [];
    fill();
    return [make("h2", {}, "Its kernels"), make("div", { class: "tools choices" }, make("label", { for: "order" }, "in order of "), choose, ...kinds), note, tiles, pages];
  };
  // A gallery is one stop of the Tab key; arrows move inside it.
  const roam = (list) => {
    const links = [...list.querySelectorAll("a")];
    links.forEach((a, i) => { a.tabIndex = i ? -1 : 0; });
    list.onkeydown = (event) => {
      const from = links.indexOf(document.activeElement), wide = links.filter((a) => a.offsetTop === links[0].offsetTop).length || 1;
      const to = { ArrowRight: from + 1, ArrowLeft: from - 1, ArrowDown: from + wide, ArrowUp: from - wide, Home: 0, End: links.length - 1 }[event.key];
      if (from < 0 || to === undefined || !links[to]) return;
      event.preventDefault();
      links.forEach((a) => { a.tabIndex = -1; }); links[to].tabIndex = 0; links[to].focus();
    };
  };
  const kernelPage = (layer, kernel) => {
    const address = `${layer.address}:${kernel}`, link = (k, text) => make("a", { href: hash(`${layer.address}:${k}`) }, text);
    const links = [make("a", { href: hash(layer.address) }, layer.address), kernel > 0 && link(kernel - 1, `before: :${kernel - 1}`), kernel + 1 < layer.kernels && link(kernel + 1, `after: :${kernel + 1}`)].filter(Boolean);
    const parts = [...head(address, `One of ${count(layer.kernels, "kernel")} of ${layer.what}.`, links), findings(address)].filter(Boolean);
    if (layer.patches) {
      const strips = [["top", "The patches that excite it most", "One an image, strongest first; the share of its largest activation."], ["middle", "Ordinary ones", "Drawn at random from the 50th to the 90th percentile of images."]].map(([which, title, what]) => {
        const found = [...Array(layer.patches.count).keys()].map((n) => patchPicture(layer, kernel, which, n, 112)).filter(Boolean);
        return make("div", {}, make("h2", {}, title), make("p", { class: "size" }, what), found.length ? make("ul", { class: "patches" }, found) : make("p", { class: "size" }, "None: it is not above zero in any image."));
      });
      parts.push(make("div", { class: "beside" }, strips), make("p", { class: "size wide" }, `Each is cut to the theoretical receptive field; the circle holds 90 % of what the layer uses on average; hatched is padding. Taken ${{ convolution: "at the convolution", pre_add: "after the batch norm, before the addition" }[layer.patches.tap] || `after ${layer.patches.tap}`}.`));
    }
    const kept = slicesOf(layer, kernel);
    if (kept) {
      const own = Math.max(...[...kept.all].map(Math.abs), 1) * layer.limit / STEPS, holder = make("div", { class: "weights" });
      const stage = (limit, from, words) => make("figure", {}, kernelPicture(layer, kernel, 260, limit, from), layer.before ? make("figcaption", { class: "size" }, words) : "");
      const draw = (limit) => holder.replaceChildren(...(layer.before ? [stage(limit, "before", "in the earlier checkpoint")] : []), stage(limit, "weights", "now"));
      draw(layer.limit);
      const button = make("button", { type: "button", "aria-pressed": "false" }, `on its own scale, \u00b1${number(Number(own.toPrecision(2)))}`);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on)); draw(on ? own : layer.limit);
      });
      const whole = norms(layer, kept), all = data.tables.find((t) => t.id === "kernels"), values = all && cells(all, layer, kernel);
      const norm = values ? middle(values[all.columns.findIndex((c) => c.name === "norm")]) : Math.hypot(...whole);
      const rest = Math.sqrt(Math.max(0, norm * norm - whole.reduce((a, b) => a + b * b, 0)));
      const what = layer.shown < layer.slices ? `Its ${layer.shown} strongest slices of ${layer.slices.toLocaleString("en")} (input channels ${[...kept.which].join(", ")}); the L2 norm of all the others together is ${number(Number(rest.toPrecision(3)))}, of the whole kernel ${number(norm)}.` : `Its ${count(layer.slices, "slice")}.`;
      parts.push(make("h2", {}, "Its weights"), make("p", { class: "size wide" }, `${what} Scale \u00b1${number(Number(layer.limit.toPrecision(3)))}, the layer's.`), holder, make("p", { class: "choices" }, button));
    }
    const answers = [["What it makes of the pictured images", layer.maps, mapsPicture], ["The stripes it answers to", layer.tuning, tuningPicture]].filter(([, there]) => there);
    if (answers.length) parts.push(make("div", { class: "beside" }, answers.map(([title, , draw]) => make("div", {}, make("h2", {}, title), draw(layer, kernel)))));
    const facts = data.tables.map((t) => { const row = cells(t, layer, kernel); return row && listed(t.title, t.columns, row, layer); }).filter(Boolean);
    parts.push(make("div", { class: "sheet" }, facts));
    return parts;
  };

  // ---- the address decides
  const asked = () => {
    const address = decodeURIComponent(location.hash.slice(1));
    load();
    if (layers.has(address)) return [layers.get(address), null];
    const cut = address.lastIndexOf(":"), layer = layers.get(address.slice(0, cut)), kernel = Number(address.slice(cut + 1));
    return layer && Number.isInteger(kernel) && kernel >= 0 && kernel < layer.kernels ? [layer, kernel] : null;
  };
  const title = document.title;
  const route = () => {
    const found = location.hash.length > 1 && !document.querySelector(`main > section[id="${CSS.escape(location.hash.slice(1))}"]`) ? asked() : null;
    document.documentElement.classList.toggle("viewing", Boolean(found));
    view.hidden = !found;
    if (!found) { view.replaceChildren(); document.title = title; return; }
    const [layer, kernel] = found;
    open(layer);
    view.replaceChildren(...(kernel === null ? layerPage(layer) : kernelPage(layer, kernel)));
    document.title = `${layer.address}${kernel === null ? "" : `:${kernel}`} \u00b7 ${title}`;
    window.scrollTo(0, 0);
    view.querySelector("h1").focus({ preventScroll: true });
  };
  window.addEventListener("hashchange", route);
  if (location.hash) route();
})();
