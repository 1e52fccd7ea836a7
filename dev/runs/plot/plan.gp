# Predicted against measured time of an update. Called by dev/runs/plot.sh with data (blocks of a
# point: each network's patterns in turn), the networks' names, and patterns with their points. A
# colour is a network, a point a pattern.
array colours[6] = ['#0072B2', '#D55E00', '#009E73', '#E69F00', '#56B4E9', '#CC79A7']
n = words(networks)
m = words(patterns)
name(i) = system("echo '".word(networks, i)."' | tr _ ' '")
set title 'Planner: predicted against measured time of an update' font ',16'
set grid lc rgb '#cccccc' lw 0.7 dt 1
set border 3 lc rgb '#444444'
set tics nomirror
set logscale xy
stats data using 1 nooutput
low = STATS_min
high = STATS_max
stats data using 2 nooutput
low = (low < STATS_min ? low : STATS_min) * 0.7
high = (high > STATS_max ? high : STATS_max) * 1.4
set xrange [low:high]
set yrange [low:high]
set format xy '%g'
set size square
set xlabel 'measured on an emulated network (ms per update)'
set ylabel 'predicted by dev/net/plan from a run without a network (ms per update)'
set key top left reverse Left samplen 1
set style fill solid 0.15 noborder
plot '+' using 1:($1 / 1.1):($1 * 1.1) with filledcurves lc rgb '#888888' title 'within 10%', \
    x lc rgb '#000000' dt 3 title 'exact', \
    for [i=1:n] for [k=1:m] data index (i-1)*m+k-1 using 1:2 with points \
        pt int(word(points, k)) ps 1.6 lw 1.5 lc rgb colours[(i - 1) % 6 + 1] notitle, \
    for [i=1:n] NaN with lines lw 8 lc rgb colours[(i - 1) % 6 + 1] title name(i), \
    for [k=1:m] NaN with points pt int(word(points, k)) ps 1.6 lw 1.5 lc rgb '#666666' \
        title word(patterns, k)
